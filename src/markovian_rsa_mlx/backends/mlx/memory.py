"""Predict the memory of a model's weights and caches from the headers of its weight files, or from its config.

MLX arrays are lazy. A model that is loaded or built from a config and run on a prompt, but never evaluated, takes no
memory, and its caches have their shapes. So every architecture of mlx-lm can be measured the same way. Sizes are in
bytes and lengths in tokens.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from ...errors import ModelError
from ...hub import read_config
from ...models import UnsupportedCheckpointError, loader_config, register
from ..policy import CACHE_STEP, ModelFootprint
from .quantized_cache import quantize_kv_cache

_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def footprint_of_checkpoint(folder: Path, headers: Mapping[str, bytes], kv_bits: int | None = None) -> ModelFootprint:
    """Return the footprint of a model as mlx-lm loads it, from its config and the headers of its weight files.

    `folder` holds the config and perhaps the weights. Without them, `headers` are those of the files on the hub. With
    neither, or if mlx-lm cannot read them, the config alone must do. `kv_bits` is the width of quantized caches. Raises
    `ModelError` like `footprint_from_config`.
    """
    return footprint_of(model_of_checkpoint(folder, headers, kv_bits))


def model_of_checkpoint(folder: Path, headers: Mapping[str, bytes], kv_bits: int | None = None) -> Any:
    """Return the model that `footprint_of_checkpoint` measures, with unevaluated weights. Raises `ModelError`."""
    if any(folder.glob("model*.safetensors")):
        with contextlib.suppress(Exception):
            return _load_lazily(folder, kv_bits)
    if headers:
        with contextlib.suppress(Exception):
            return _model_of_headers(folder, headers, kv_bits)
    return _model_of_config(read_config(folder), kv_bits)


def _load_lazily(folder: Path, kv_bits: int | None) -> Any:
    from mlx_lm.utils import load_model

    register()
    model = load_model(folder, lazy=True, model_config=loader_config(read_config(folder)))[0]
    _footprint_with_caches(model, kv_bits)  # raises where the files do not make a model that runs
    return model


def _model_of_headers(folder: Path, headers: Mapping[str, bytes], kv_bits: int | None) -> Any:
    """Load files that consist of their headers alone, and of a hole as long as the weights, which takes no space."""
    with tempfile.TemporaryDirectory(prefix="mrsa-plan-") as name:
        for config in folder.glob("*.json"):
            shutil.copy(config, name)
        for file, header in headers.items():
            ends = (entry["data_offsets"][1] for key, entry in json.loads(header).items() if key != "__metadata__")
            with Path(name, Path(file).name).open("wb") as stream:
                stream.write(struct.pack("<Q", len(header)) + header)
                stream.truncate(stream.tell() + max(ends, default=0))
        return _load_lazily(Path(name), kv_bits)


def _model_of_config(config: Mapping[str, Any], kv_bits: int | None) -> Any:
    try:
        model = build_lazily(config)
        _footprint_with_caches(model, kv_bits)
        return model
    except ModelError:
        raise
    except UnsupportedCheckpointError as error:
        raise ModelError(str(error)) from error
    except Exception as error:
        raise ModelError(
            f"The memory of this model cannot be predicted from its config.json ({type(error).__name__}: {error})."
        ) from error


def footprint_from_config(config: Mapping[str, Any], kv_bits: int | None = None) -> ModelFootprint:
    """Return the footprint of the model that `config` (a config.json) describes.

    Raises `ModelError` for an architecture that mlx-lm cannot build, or whose caches cannot have `kv_bits`.
    """
    return footprint_of(_model_of_config(config, kv_bits))


def weight_reads(model: Any, experts_per_token: int) -> tuple[int, int, float]:
    """Return what one decoded token reads: bytes of dense weights, of all experts, and the share of them it chooses.

    An embedding is read whole where it is the head too, and else not at all.
    """
    dense, experts, count = 0, 0, 1
    tied = not any(path.endswith("lm_head") for path, _ in model.named_modules())
    for path, module in model.named_modules():
        own = sum(array.nbytes for array in module.values() if isinstance(array, mx.array))
        if isinstance(module, (SwitchLinear, QuantizedSwitchLinear)):
            experts, count = experts + own, module.weight.shape[0]
        elif tied or not path.endswith("embed_tokens"):
            dense += own
    return dense, experts, min(1.0, experts_per_token / count)


def _footprint_with_caches(model: Any, kv_bits: int | None) -> ModelFootprint:
    if kv_bits is not None:
        quantize_kv_cache(model, kv_bits)
    return footprint_of(model)


def footprint_of(model: Any) -> ModelFootprint:
    """Return the footprint of a built model, loaded or lazy. Evaluates nothing."""
    weights = sum(array.nbytes for array in parameters(model))
    leaves: list[list[Any]] = []  # the caches after a short and a long prompt
    for tokens in (CACHE_STEP, 2 * CACHE_STEP):
        caches = make_prompt_cache(model)
        logits = model(mx.zeros((1, tokens), dtype=mx.int32), cache=caches)
        leaves.append(list(_leaves(caches)))
    per_token = state = 0
    windows: dict[int, int] = {}
    for one, two in zip(*leaves, strict=True):
        slope = (two.nbytes - one.nbytes) // CACHE_STEP
        state += one.nbytes - slope * CACHE_STEP
        window = getattr(one, "max_size", None) or getattr(one, "chunk_size", None)
        if window and slope:
            windows[window] = windows.get(window, 0) + slope
        else:
            per_token += slope
    return ModelFootprint(weights, per_token, state, tuple(sorted(windows.items())), int(logits.shape[-1]))


def parameters(model: Any) -> list[mx.array]:
    """Return all weights of a model."""
    return [array for _, array in named_parameters(model)]


def named_parameters(model: Any) -> list[tuple[str, mx.array]]:
    """Return all weights of a model with their names."""
    return cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))


def build_lazily(config: Mapping[str, Any]) -> Any:
    """Build the mlx-lm model of a config, with unevaluated weights of the shapes and types of a checkpoint."""
    # A private function, because mlx-lm's public ones need the weights. It maps a model_type to the model's classes.
    from mlx_lm.utils import _get_classes

    register()
    settings = dict(config)
    try:
        model_class, args_class = _get_classes(config=settings)
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"mlx-lm cannot run the architecture {settings.get('model_type', 'that config.json leaves out')!r}."
        ) from error
    model = model_class(args_class.from_dict(settings))
    # Weights on the hub are nearly always 16 bits wide if the config names no dtype.
    parts = (settings, settings.get("text_config") or {})
    dtypes = (str(part[key]) for part in parts for key in ("dtype", "torch_dtype") if part.get(key))
    model.set_dtype(_DTYPES.get(next(dtypes, ""), mx.bfloat16))
    tied = (part["tie_word_embeddings"] for part in parts if "tie_word_embeddings" in part)
    if next(tied, str(settings.get("model_type")).startswith("gemma")) and hasattr(model, "sanitize"):
        # Some models build an output layer, and drop it when they are given weights without one.
        with contextlib.suppress(Exception):
            model.sanitize({name: array for name, array in named_parameters(model) if "lm_head" not in name})
    quantization = settings.get("quantization")
    if not quantization:
        return model
    group_size = quantization["group_size"]

    def predicate(path: str, module: Any) -> Any:
        if path in quantization:
            return quantization[path]
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % group_size:
            return False
        own = getattr(model, "quant_predicate", None)
        return own(path, module) if callable(own) else True

    quantize(
        model,
        group_size=group_size,
        bits=quantization["bits"],
        mode=quantization.get("mode", "affine"),
        class_predicate=predicate,
    )
    return model


def context_length_of(config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence that the model supports, or None if its config.json does not state it."""
    for part in (config.get("text_config") or {}, config):
        for key in ("max_position_embeddings", "max_sequence_length", "seq_length", "n_positions", "n_ctx"):
            value = part.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _leaves(caches: Any) -> Iterator[Any]:
    for cache in caches:
        parts = getattr(cache, "caches", None)
        if parts is None:
            yield cache
        else:
            yield from _leaves(parts)
