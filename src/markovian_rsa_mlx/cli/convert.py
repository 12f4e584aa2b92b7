"""`mrsa convert`: a model's checkpoint into a folder of MLX weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import print_status


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A hub id or a local folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The new folder; it must not exist.")],
    bits: Annotated[
        int | None, typer.Option("--bits", metavar="4|8", help="Quantize the large matrices; unset: leave them whole.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="TYPE", help="bfloat16, float16 or float32 for what stays whole; unset: the source's."
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="The hub's branch, tag or commit.")
    ] = None,
) -> None:
    """Convert a model for solve --model.

    The folder appears when it is complete; a conversion that breaks off leaves nothing.
    """
    from ..convert import convert as convert_model

    print(convert_model(source, out, bits=bits, dtype=dtype, revision=revision, progress=print_status))
