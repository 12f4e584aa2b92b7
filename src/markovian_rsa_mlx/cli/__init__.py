"""The command line, `markovian-rsa-mlx` and `mrsa`. Help must answer at once: nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code (0, 1 failure, 2 usage, 130 interrupted)."""
    from .app import run

    return run(arguments)
