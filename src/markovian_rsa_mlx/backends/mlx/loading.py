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
from ...hub import check_revision, download, local_folder, model_digest, read_config, with_adapter
from ...models import UnsupportedCheckpointError, loader_config, parameter_of, register
from ...models.lean_llama import lean
from ...models.numpy_llama import with_numpy
from ..tokenizers import loader_options
from .adapter import add_adapter, keep_switch
from .memory import parameters
from .quantized_cache import quantize_kv_cache
from .weight_files import origin, tensors

Progress = Callable[[str], None]


@dataclass
class LoadedModel:
    """A loaded model. `quantization` is "none" or like "4-bit", `dtype` is the type of its activations.

    `digest` identifies its files and the adapter that all traces use. `kv_bits` is the width of a number in its KV
    caches, if they are quantized. `adapter_folder` and `adapter_digest` are those of the aggregation adapter.
    """

    model: Any
    tokenizer: Any
    config: dict[str, Any]
    model_id: str
    path: Path
    digest: str
    quantization: str
    dtype: str
    kv_bits: int | None = None
    adapter_folder: str = ""
    adapter_digest: str = ""


def load_model(
    model: str | Path,
    *,
    revision: str | None = None,
    adapter_path: str | Path | None = None,
    model_id: str | None = None,
    kv_bits: int | None = None,
    aggregation_adapter: str | Path | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load `model` on the calling thread, which must be the one that runs it.

    `aggregation_adapter` is the folder of a LoRA that is switched by row. Raises `ModelError`, and `ConfigError` for
    other `kv_bits` than 8 or None, and for the `revision` of a folder.
    """
    report = progress or (lambda _: None)
    adapter = None if adapter_path is None else Path(adapter_path).expanduser()
    if adapter is not None and not (adapter / "adapter_config.json").is_file():
        raise ModelError(
            f"There is no adapter_config.json in the adapter folder {str(adapter_path)!r}. Check --adapter."
        )
    if adapter is not None and aggregation_adapter is not None:
        raise ModelError(
            "A model takes --adapter or an aggregation adapter, not both. Fuse the first with mlx_lm.fuse."
        )
    local = local_folder(model)
    check_revision(model_id or str(model), revision, local)
    path = local or download(str(model), revision, report)
    config = read_config(path)
    report(f"Loading {model}")
    built, tokenizer = _load(path, adapter)
    # The floating type that most weight arrays have, without an adapter. Quantized layers count by their scales.
    types = Counter(array.dtype for array in parameters(built) if mx.issubdtype(array.dtype, mx.floating))
    dtype = str(types.most_common(1)[0][0]).removeprefix("mlx.core.") if types else "unknown"
    digest = with_adapter(model_digest(path), adapter)
    folder = None if aggregation_adapter is None else Path(aggregation_adapter).expanduser().resolve()
    switched = "" if folder is None else add_adapter(built, folder)
    built = keep_switch(built, lean(built))
    if kv_bits is None:
        built = with_numpy(built)
    else:
        quantize_kv_cache(built, kv_bits)
    quantization = quantization_of({**config, **loader_config(config)})
    loaded = LoadedModel(built, tokenizer, config, model_id or str(model), path, digest, quantization, dtype, kv_bits)
    loaded.adapter_folder, loaded.adapter_digest = str(folder or ""), switched
    return loaded


def quantization_of(config: Mapping[str, Any]) -> str:
    """Return "none", or the width of the weights like "4-bit" (the default width, if layers differ)."""
    settings = config.get("quantization") or config.get("quantization_config")
    if not settings:
        return "none"
    bits = settings.get("bits")
    return f"{bits}-bit" if bits else str(settings.get("quant_method", "quantized"))


def _load(path: Path, adapter: Path | None) -> tuple[Any, Any]:
    from mlx_lm.utils import load

    register()
    tensors(path)
    config = read_config(path)
    try:
        result = load(
            str(path),
            tokenizer_config=loader_options(path, config),
            model_config=loader_config(config),
            adapter_path=None if adapter is None else str(adapter),
        )
        return result[0], result[1]
    except Exception as error:
        raise loading_error(path, config, error) from error


def loading_error(path: Path, config: Mapping[str, Any], error: Exception) -> ModelError:
    """Return the error for a model that mlx-lm refused, with the tensors and files that the original one is about."""
    message = " ".join(str(error).split())
    if isinstance(error, UnsupportedCheckpointError):
        return ModelError(f"The model in {str(path)!r} cannot be loaded. {message}")
    if isinstance(error, FileNotFoundError):
        return ModelError(
            f"The model in {str(path)!r} is incomplete ({error}). It needs model*.safetensors and a tokenizer."
        )
    if "not supported" in message and "Model type" in message:
        return ModelError(
            f"mlx-lm cannot run the architecture {config.get('model_type')!r} of {str(path)!r}. Use a model of a "
            "supported one."
        )
    if "safetensors" in message.lower():
        return ModelError(
            f"A weights file in {str(path)!r} is damaged ({message}). Delete it and download the model again."
        )
    short = message if len(message) <= 300 else message[:300] + "..."
    where = origin(path, message, lambda name: parameter_of(name, config))
    return ModelError(f"The model in {str(path)!r} cannot be loaded ({type(error).__name__}: {short}).{where}")
