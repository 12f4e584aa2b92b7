"""Predict the memory of a model's weights and caches from its config.

MLX arrays are lazy. A model that is built from a config and run on a prompt, but never evaluated, takes no memory, and
its caches have their shapes. So every architecture of mlx-lm can be measured the same way. Sizes are in bytes and
lengths in tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from ...errors import ModelError
from ...models import register
from ..policy import CACHE_STEP, ModelFootprint

_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def footprint_from_config(config: Mapping[str, Any]) -> ModelFootprint:
    """Return the footprint of the model that `config` (a config.json) describes.

    Raises `ModelError` for an architecture that mlx-lm cannot build.
    """
    try:
        return footprint_of(build_lazily(config))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"The memory of this model cannot be predicted from its config.json ({type(error).__name__}: {error})."
        ) from error


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
    return [array for _, array in cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))]


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


def available_memory_bytes() -> int:
    """Return the memory that this process should use at most: the device's working set, or most of the free RAM."""
    device = mx.device_info()
    working_set = device.get("max_recommended_working_set_size")
    if working_set:
        return int(working_set)
    if mx.default_device() == mx.gpu:
        total = device.get("total_memory") or device.get("memory_size")
        if total:
            return int(0.9 * int(total))
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        free = min(free, max(0, int(limit.read_text()) - int(used.read_text())))
    return int(0.8 * free)


def _leaves(caches: Any) -> Iterator[Any]:
    for cache in caches:
        parts = getattr(cache, "caches", None)
        if parts is None:
            yield cache
        else:
            yield from _leaves(parts)
