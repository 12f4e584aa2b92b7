"""The command line, `mrsa` and `markovian-rsa-mlx`. Nothing here may import heavy modules: `--help` must be quick."""

from .app import main

__all__ = ["main"]
