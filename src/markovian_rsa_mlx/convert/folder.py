"""Convert a model into an MLX folder; see the package."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from ..errors import ConfigError, ModelError
from ..hub import download, local_folder, read_config
from ..models import register
from ..models.zaya_config import native_config
from .shards import INDEX, corruption, weight_files

Progress = Callable[[str], None]

BITS = (4, 8)
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
GROUP_SIZE = 64
#: Written at once; what a conversion holds in memory beside the largest weight.
SHARD_BYTES = 2 * 2**30
#: Left free on the disk beside the converted model.
_SPARE_BYTES = 200 * 2**20
#: What a model's folder holds beside weights, config and index, and the converted one keeps.
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "README.md")


def convert(
    source: str | Path,
    out: str | Path,
    *,
    bits: int | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Convert `source` (a hub id or a folder) into the new folder `out`, which mlx-lm and the engine read.

    `bits` quantizes the large matrices (4 or 8; embeddings keep 8), `dtype` is that of the rest; None keeps
    what the source has. Returns `out`. Raises `ConfigError` for settings and `ModelError` for the rest: a
    missing or broken weights file, an architecture that cannot be run, a full disk.
    """
    say = progress or (lambda _: None)
    target = Path(out).expanduser()
    _check(target, bits, dtype)
    folder = local_folder(source) or _fetch(str(source), revision, say)
    weight_files(folder)
    config = read_config(folder)
    say("Reading the weights")
    model, config = _lazy(folder, config, bits, dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_disk(target, model)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write_weights(draft, model, say)
        _write_auxiliary_files(draft, folder, config)
        draft.chmod(0o755)
        draft.rename(target)
    except OSError as error:
        raise ModelError(f"The converted model cannot be written to {str(target)!r} ({error}).") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    say(f"Converted to {target}")
    return target


def _check(target: Path, bits: int | None, dtype: str | None) -> None:
    if bits is not None and bits not in BITS:
        raise ConfigError(f"bits is {bits}; allowed: {' and '.join(map(str, BITS))}.")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}.")
    if target.exists():
        raise ConfigError(f"{str(target)!r} is there already; choose another name or remove it.")


def _fetch(model: str, revision: str | None, say: Progress) -> Path:
    return download(model, revision, say)


def _lazy(folder: Path, config: dict[str, Any], bits: int | None, dtype: str | None) -> tuple[Any, dict[str, Any]]:
    """The model with every step noted and none done yet, and its new config."""
    from mlx_lm.utils import load_model, quantize_model

    register()
    if bits is not None and (config.get("quantization") or config.get("quantization_config")):
        raise ModelError(f"The model in {str(folder)!r} is quantized already; convert the original instead.")
    try:
        model, config = load_model(folder, lazy=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The model in {str(folder)!r} cannot be converted ({reason}).") from error
    if dtype is not None:
        _cast(model, DTYPES[dtype])
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    if bits is not None:
        predicate = getattr(model, "quant_predicate", None)
        # mlx-lm's own function, for its config block; what it prints is not for our users.
        model, config = _quietly(lambda: quantize_model(model, config, GROUP_SIZE, bits, quant_predicate=predicate))
    return model, config


def _cast(model: Any, dtype: mx.Dtype) -> None:
    wanted = getattr(model, "cast_predicate", lambda _: True)

    def one(name: str, array: mx.array) -> mx.array:
        return array.astype(dtype) if wanted(name) and mx.issubdtype(array.dtype, mx.floating) else array

    model.update(tree_map_with_path(one, model.parameters()))


def _quietly(call: Callable[[], tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any]]:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        return call()


def _check_disk(target: Path, model: Any) -> None:
    needed = sum(array.nbytes for array in _parameters(model).values())
    free = shutil.disk_usage(target.parent).free
    if needed + _SPARE_BYTES > free:
        raise ModelError(
            f"The converted model takes {needed / 1e9:.1f} GB and {str(target.parent)!r} has {free / 1e9:.1f} GB free; "
            "free some space or choose a folder on a larger disk."
        )


def _parameters(model: Any) -> dict[str, mx.array]:
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(model.parameters())))


def _write_weights(draft: Path, model: Any, say: Progress) -> None:
    """Weights in the order of their names, in shards; each is computed, written and let go before the next."""
    weights = _parameters(model)
    model.update(tree_map_with_path(lambda _name, _array: mx.array([]), model.parameters()))
    plan = _plan(weights)
    total = sum(array.nbytes for array in weights.values())
    placed: dict[str, str] = {}
    for number, names in enumerate(plan, start=1):
        file = draft / (f"model-{number:05d}-of-{len(plan):05d}.safetensors" if len(plan) > 1 else "model.safetensors")
        say(f"Writing {file.name}, {len(placed)} of {sum(map(len, plan))} weights done")
        _write_shard(file, {name: weights.pop(name) for name in names})
        placed |= dict.fromkeys(names, file.name)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    (draft / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _plan(weights: dict[str, mx.array]) -> list[list[str]]:
    shards: list[list[str]] = []
    size = SHARD_BYTES
    for name in sorted(weights):
        if size + weights[name].nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += weights[name].nbytes
    return shards


def _write_shard(file: Path, arrays: dict[str, mx.array]) -> None:
    try:
        mx.save_safetensors(str(file), arrays, metadata={"format": "mlx"})
    except RuntimeError as error:
        raise OSError(str(error)) from error
    # MLX does not notice a disk that is full.
    if (fault := corruption(file)) is not None:
        raise OSError(f"{file.name}: {fault}; the disk may be full")


def _write_auxiliary_files(draft: Path, folder: Path, config: dict[str, Any]) -> None:
    """Tokenizer, chat template and the like as they are; the config in native words."""
    for pattern in _COMPANIONS:
        for file in folder.glob(pattern):
            if file.is_file() and file.name not in ("config.json", INDEX):
                shutil.copyfile(file, draft / file.name)
    if config.get("model_type") == "zaya":
        # transformers, which reads the tokenizer, refuses legacy configs.
        config = {**native_config(config), "architectures": ["ZayaForCausalLM"]}
    text = json.dumps(dict(sorted(config.items())), indent=2)
    (draft / "config.json").write_text(text + "\n", encoding="utf-8")
