"""Which tokenizer makes ids and texts: a local one, or the server's own where it lends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import ModelError
from ...method.codec import Codec
from .served import ServedCodec
from .settings import Upstream
from .wire import Wire


def choose_codec(upstream: Upstream, model: str, wire: Wire, props: dict[str, Any]) -> Codec:
    """The tokenizer that was named, else the one that the server lends, else that of the model's folder or hub id.

    `props`: what llama.cpp's server says of itself, {} of another. Raises `ModelError`.
    """
    if upstream.tokenizer is not None:
        return local_codec(upstream.tokenizer)
    if props:
        return ServedCodec(wire, props, upstream.api_key)
    if not _reads_like_a_model(model):
        raise _no_tokenizer(model, "")
    try:
        return local_codec(model)
    except ModelError as error:
        raise _no_tokenizer(model, f" ({str(error).rstrip('.')})") from error


def local_codec(name: str) -> Codec:
    """The tokenizer of a GGUF file, a folder or a hub id."""
    if name.endswith(".gguf"):
        from .gguf import GGUFCodec

        return GGUFCodec(Path(name).expanduser())
    from ..mlx.tokenizer import load_codec

    return load_codec(name)


def _reads_like_a_model(model: str) -> bool:
    return (Path(model) / "config.json").is_file() or (model.count("/") == 1 and not model.startswith((".", "/", "~")))


def _no_tokenizer(model: str, cause: str) -> ModelError:
    return ModelError(
        f"The server lends no tokenizer, and none is known for its model {model!r}{cause}; tokens are never counted by "
        "words, so name the model's folder or hub id with --tokenizer."
    )
