"""Measurements that are too long for the tests."""

import markovian_rsa_mlx  # noqa: F401  (before MLX, which then gets a fast BLAS)
