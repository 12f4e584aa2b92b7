"""All tests of the engine run the model with MLX, as on a GPU. Small models of users run with NumPy on CPUs."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def without_numpy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRSA_NUMPY", "off")
        yield
