"""`mrsa convert`: convert a checkpoint to a folder of MLX weights."""

from __future__ import annotations

from pathlib import Path

import click

from .command import PATH, Command, option
from .terminal import print_status


@click.command("convert", cls=Command)
@click.argument("source", help="A hub id or a local folder.")
@option("--out", type=PATH, required=True, metavar="DIR", help="The new folder; it must not exist.")
@option("--bits", type=int, metavar="4|8", help="Quantize the large matrices; unset: leave them whole.")
@option(
    "--dtype",
    metavar="TYPE",
    help="bfloat16, float16 or float32 for the weights that are not quantized; unset: the source's.",
)
@option("--revision", metavar="REV", help="The hub's branch, tag or commit.")
def convert(source: str, out: Path, bits: int | None, dtype: str | None, revision: str | None) -> None:
    """Convert a model for solve --model.

    The folder appears when it is complete. A conversion that fails leaves no files.
    """
    from ..convert import convert as convert_model

    print(convert_model(source, out, bits=bits, dtype=dtype, revision=revision, progress=print_status))
