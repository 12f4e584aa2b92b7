"""`python -m markovian_rsa_mlx`."""

import sys

from .cli import main

sys.exit(main())
