"""Settings of all tests."""

from hypothesis import settings

import markovian_rsa_mlx  # noqa: F401  (MLX then gets a fast BLAS, also in modules that import mlx first)

# A busy machine is not a failure: no example has a time limit of its own.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
