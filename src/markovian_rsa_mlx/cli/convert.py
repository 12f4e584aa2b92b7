"""`mrsa convert`: convert a checkpoint to a folder of MLX weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .command import PATH, Command, option
from .terminal import print_status


@click.command(
    "convert",
    cls=Command,
    examples=(
        "mrsa convert Zyphra/ZAYA1-8B --out zaya-4bit --bits 4",
        "mrsa convert ./my-model --out my-model-float32 --dtype float32",
    ),
)
@click.argument("source", help="A hub id or a local folder.")
@option("--out", type=PATH, required=True, metavar="DIR", help="The new folder; it must not exist.")
@option("--bits", type=int, metavar="4|8", help="Quantize the large matrices; unset: leave them whole.")
@option(
    "--mode",
    default="affine",
    metavar="affine|mxfp4",
    help="The format of 4-bit weights: MLX's with scales and offsets in groups of 64, or MXFP4.",
)
@option("--expert-bits", type=int, metavar="4|8", help="The width of the experts; unset: as --bits.")
@option("--attention-bits", type=int, metavar="4|8", help="The width of the attention; unset: as --bits.")
@option(
    "--embedding-bits",
    type=int,
    metavar="4|8",
    help="The width of embeddings and head; unset: as --bits, and 8 for ZAYA and MXFP4.",
)
@option(
    "--dtype",
    metavar="TYPE",
    help="bfloat16, float16 or float32 for the weights that are not quantized; unset: the source's.",
)
@option("--revision", metavar="REV", help="The hub's branch, tag or commit.")
def convert(source: str, out: Path, revision: str | None, **settings: Any) -> None:
    """Convert a model for solve --model.

    The folder appears when it is complete. A conversion that fails leaves no files.
    """
    from ..convert import convert as convert_model

    print(convert_model(source, out, revision=revision, progress=print_status, **settings))
