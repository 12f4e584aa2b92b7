"""Convert a model into an MLX folder, shard by shard."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path

from ..backends.mlx.loading import loading_error
from ..backends.mlx.memory import named_parameters, parameters
from ..backends.mlx.weight_files import INDEX, corruption, weight_files
from ..errors import ConfigError, ModelError
from ..formatting import size
from ..hub import download, local_folder, read_config
from ..models import loader_config, register
from ..models.zaya_config import native_config
from .recipe import Recipe, table_of

Progress = Callable[[str], None]

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
#: The size of a file of weights. A conversion holds one of them in memory, and the largest weight.
SHARD_BYTES = 2 * 2**30
#: Disk space left free next to the converted model.
_SPARE_BYTES = 200 * 2**20
#: Files of a model's folder that the converted one keeps, in addition to weights, config and index.
_AUXILIARY_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "README.md")
#: Keys that describe the layout of the source.
_LAYOUT_KEYS = ("weight_format", "zaya_expert_layout", "jang", "capabilities", "cache_subtype", "compression_config")


def convert(
    source: str | Path,
    out: str | Path,
    *,
    bits: int | None = None,
    mode: str = "affine",
    expert_bits: int | None = None,
    attention_bits: int | None = None,
    embedding_bits: int | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Convert `source` (a hub id or a folder) into the new folder `out`, which mlx-lm and the engine read.

    `bits` quantizes the large matrices (4 or 8; ZAYA's embeddings keep 8), `mode` "mxfp4" makes 4 bits MXFP4, and the
    other widths are for parts of the model (see `Recipe`). `dtype` is the type of the other weights. None keeps that of
    the source. Returns `out`. Raises `ConfigError` for invalid settings, and `ModelError` for a missing or damaged
    weights file, an architecture that cannot be run, and a full disk.
    """
    report = progress or (lambda _: None)
    target = Path(out).expanduser()
    recipe = Recipe(bits, mode, expert_bits, attention_bits, embedding_bits)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)} (got {dtype!r}).")
    if target.exists():
        raise ConfigError(f"{str(target)!r} exists already. Choose another name or remove it.")
    folder = local_folder(source) or download(str(source), revision, report)
    weight_files(folder)
    config = read_config(folder)
    report("Reading the weights")
    model, config = _load_lazily(folder, config, recipe, dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(array.nbytes for array in parameters(model))
    free = shutil.disk_usage(target.parent).free
    if needed + _SPARE_BYTES > free:
        raise ModelError(
            f"The converted model takes {size(needed)} and {str(target.parent)!r} has {size(free)} free. "
            "Free some space or choose a folder on a larger disk."
        )
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write_weights(draft, model, report)
        _write_auxiliary_files(draft, folder, config)
        draft.chmod(0o755)
        draft.rename(target)
    except OSError as error:
        raise ModelError(f"The converted model cannot be written to {str(target)!r} ({error}).") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    report(f"Converted to {target}")
    return target


def _load_lazily(folder: Path, config: dict[str, Any], recipe: Recipe, dtype: str | None) -> tuple[Any, dict[str, Any]]:
    """Return the converted model, not evaluated yet, and its new config."""
    from mlx_lm.utils import load_model, quantize_model

    register()
    try:
        changes = loader_config(config)
        packed = config | changes
        if recipe.quantizes and (packed.get("quantization") or packed.get("quantization_config")):
            raise ModelError(f"The model in {str(folder)!r} is quantized already. Convert the original instead.")
        model, loaded_config = load_model(folder, lazy=True, model_config=changes)
    except ModelError:
        raise
    except Exception as error:
        raise loading_error(folder, config, error) from error
    config = loaded_config
    if dtype is not None:
        may_cast = getattr(model, "cast_predicate", lambda _: True)

        def cast_weight(name: str, array: mx.array) -> mx.array:
            is_floating = mx.issubdtype(array.dtype, mx.floating)
            return array.astype(DTYPES[dtype]) if may_cast(name) and is_floating else array

        model.update(tree_map_with_path(cast_weight, model.parameters()))
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    if recipe.quantizes:
        predicate, default = recipe.predicate(model), recipe.default
        with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm prints the bits per weight
            model, config = quantize_model(model, config, **default, quant_predicate=predicate)
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
        if table := table_of(model):
            config[key] = table
    return model, config


def _write_weights(draft: Path, model: Any, report: Progress) -> None:
    """Write the weights in the order of their names. Each shard is computed, written and freed before the next."""
    weights = dict(named_parameters(model))
    model.update(tree_map_with_path(lambda _name, _array: mx.array([]), model.parameters()))
    total = sum(array.nbytes for array in weights.values())
    shards: list[list[str]] = []
    size = SHARD_BYTES
    for name in sorted(weights):
        if size + weights[name].nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += weights[name].nbytes
    count = len(weights)
    file_of: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        numbered = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = draft / (numbered if len(shards) > 1 else "model.safetensors")
        report(f"Writing {file.name}, {len(file_of)} of {count} weights done")
        try:
            arrays = {name: weights.pop(name) for name in names}
            mx.save_safetensors(str(file), arrays, metadata={"format": "mlx"})
        except RuntimeError as error:
            raise OSError(str(error)) from error
        del arrays
        # MLX does not report a full disk.
        if (problem := corruption(file)) is not None:
            raise OSError(f"{file.name}: {problem}; the disk may be full")
        file_of |= dict.fromkeys(names, file.name)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}
    (draft / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_auxiliary_files(draft: Path, folder: Path, config: dict[str, Any]) -> None:
    """Copy tokenizer, chat template and the like, and write the config in the native format."""
    for pattern in _AUXILIARY_FILES:
        for file in folder.glob(pattern):
            if file.is_file() and file.name not in ("config.json", "jang_config.json", INDEX):
                shutil.copyfile(file, draft / file.name)
    if config.get("model_type") == "zaya":
        # transformers reads the tokenizer, and cannot read legacy configs.
        native = {key: value for key, value in native_config(config).items() if key not in _LAYOUT_KEYS}
        config = native | {"architectures": ["ZayaForCausalLM"]}
    text = json.dumps(dict(sorted(config.items())), indent=2)
    (draft / "config.json").write_text(text + "\n", encoding="utf-8")
