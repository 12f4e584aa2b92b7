"""Load a model of mlx-lm from a hub id or a local folder: weights, tokenizer, config and adapters.

Every failure becomes a `ModelError` that names the cure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...errors import ModelError
from ...hub import download, local_folder, read_config
from ...models import register, tokenizer_options
from .memory import parameters

Progress = Callable[[str], None]


@dataclass
class LoadedModel:
    """A loaded model. `quantization` is "none" or like "4-bit", `dtype` is the type of its activations."""

    model: Any
    tokenizer: Any
    config: dict[str, Any]
    model_id: str
    path: Path
    quantization: str
    dtype: str


def load_model(
    model: str | Path,
    *,
    revision: str | None = None,
    adapter_path: str | Path | None = None,
    model_id: str | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load `model` on the calling thread, which must be the one that runs it. Raises `ModelError`."""
    report = progress or (lambda _: None)
    if adapter_path is not None and not (Path(adapter_path) / "adapter_config.json").is_file():
        raise ModelError(
            f"There is no adapter_config.json in the adapter folder {str(adapter_path)!r}. Check --adapter."
        )
    path = local_folder(model) or download(str(model), revision, report)
    config = read_config(path)
    report(f"Loading {model}")
    built, tokenizer = _load(path, adapter_path)
    # The floating type that most weight arrays have. Quantized layers count by their scales.
    types = Counter(array.dtype for array in parameters(built) if mx.issubdtype(array.dtype, mx.floating))
    dtype = str(types.most_common(1)[0][0]).removeprefix("mlx.core.") if types else "unknown"
    return LoadedModel(built, tokenizer, config, model_id or str(model), path, quantization_of(config), dtype)


def quantization_of(config: Mapping[str, Any]) -> str:
    """Return "none", or the width of the weights like "4-bit" (the default width, if layers differ)."""
    settings = config.get("quantization") or config.get("quantization_config")
    if not settings:
        return "none"
    bits = settings.get("bits")
    return f"{bits}-bit" if bits else str(settings.get("quant_method", "quantized"))


def _load(path: Path, adapter_path: str | Path | None) -> tuple[Any, Any]:
    from mlx_lm.utils import load, load_config

    register()
    try:
        result = load(
            str(path),
            tokenizer_config=tokenizer_options(load_config(path)),
            adapter_path=None if adapter_path is None else str(adapter_path),
        )
        return result[0], result[1]
    except FileNotFoundError as error:
        raise ModelError(
            f"The model in {str(path)!r} is incomplete ({error}). It needs model*.safetensors and a tokenizer."
        ) from error
    except Exception as error:
        message = " ".join(str(error).split())
        if "not supported" in message and "Model type" in message:
            kind = load_config(path).get("model_type")
            raise ModelError(
                f"mlx-lm cannot run the architecture {kind!r} of {str(path)!r}. Use a model of a supported one."
            ) from error
        if "safetensors" in message.lower() or "load_safetensors" in message:
            raise ModelError(
                f"A weights file in {str(path)!r} is damaged ({message}). Delete it and download the model again."
            ) from error
        short = message if len(message) <= 300 else message[:300] + "..."
        raise ModelError(f"The model in {str(path)!r} cannot be loaded ({type(error).__name__}: {short}).") from error
