"""Tiny ZAYA checkpoints in the layouts that others publish, written as their public converters do.

Sources: kyr0's pull request 1261 of mlx-lm (`mlx_lm/models/zaya.py`), jang-tools (`convert_zaya_common.py` and
`convert_zaya_mxfp4.py`, which made OsaurusAI's bundles), and compressed-tensors' formats `mxfp4-pack-quantized` and
`float-quantized` under the names of transformers. Every writer returns the weights that its checkpoint stands for.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..backends.tiny_models import write_tokenizer
from .folders import WIDE
from .tiny_zaya import Arrays, legacy, legacy_config, random_weights

#: Wide enough for groups of 64 everywhere; the weights are those of `folders.write`.
CONFIG = WIDE
Tensors = dict[str, mx.array]


def weights() -> Arrays:
    return random_weights(CONFIG, seed=1)


class Quantizer:
    """Quantizes arrays, and remembers the values that they stand for under their native names."""

    def __init__(self) -> None:
        self.exact: Arrays = weights()

    def pack(self, native: str, part: slice, array: np.ndarray, **settings: Any) -> Tensors:
        """Return weight, scales and perhaps biases of `array`, which is `part` of the rows of the native weight."""
        packed = mx.quantize(mx.array(array), **settings)
        wide = [each.astype(mx.float32) if mx.issubdtype(each.dtype, mx.floating) else each for each in packed]
        self.exact[native][..., part, :] = np.array(mx.dequantize(*wide, **settings).astype(mx.float32))
        return dict(zip(("weight", "scales", "biases"), packed, strict=False))


def kyr0(folder: Path, bits: int | None) -> Arrays:
    """As `mlx_lm.convert` of the pull request writes it: stacked gate, up and down, convolutions [out, kernel, in]."""
    quantizer, tensors = Quantizer(), {}
    for native, old, part, array in _half_layers("zaya_block.experts."):
        if ".conv_qk." in old and old.endswith(".weight"):
            array = array.swapaxes(1, 2)
        if bits is None or array.ndim < 2 or ".router." in old or ".conv_qk." in old:
            tensors[old] = mx.array(array)
            continue
        packed = quantizer.pack(native, part, array, group_size=64, bits=bits)
        tensors |= {f"{old.removesuffix('.weight')}.{suffix}": each for suffix, each in packed.items()}
    table = {} if bits is None else {"quantization": {"group_size": 64, "bits": bits, "mode": "affine"}}
    _write(folder, tensors, legacy_config(CONFIG) | table)
    return quantizer.exact


def osaurus(folder: Path, *, microscaling: bool, shards: int = 2) -> Arrays:
    """As jang-tools writes it: experts below `switch_mlp`, everything that is not packed in float16.

    The tools' "MXFP4" is affine with 4 bits, and embeddings of 8 that the config's `bits` does not tell. With
    `microscaling` the experts are really MXFP4, with a table by half-layer.
    """
    quantizer, tensors, table = Quantizer(), {}, {}
    for native, old, part, array in _half_layers("zaya_block.experts.switch_mlp."):
        passed = (".res_scale.", ".router.", ".conv_qk.", "norm")
        if array.ndim < 2 or any(name in old for name in passed):
            tensors[old] = mx.array(array).astype(mx.float16)
            quantizer.exact[native] = quantizer.exact[native].astype(np.float16).astype(np.float32)
            continue
        base = old.removesuffix(".weight")
        settings = {"group_size": 32, "bits": 8 if "embed_tokens" in old else 4, "mode": "affine"}
        if microscaling:
            settings = {"group_size": 32, "bits": 4, "mode": "mxfp4"} if "switch_mlp" in old else settings | {"bits": 8}
            table[base] = settings
        packed = quantizer.pack(native, part, array.astype(np.float16), **settings)
        tensors |= {f"{base}.{suffix}": each for suffix, each in packed.items()}
    quantization = {"bits": 4, "group_size": 32, "mode": "affine", "embed_bits": 8, "router_bits": 16}
    config = legacy_config(CONFIG) | {
        "weight_format": "mxfp4",
        "zaya_expert_layout": "split_switch_mlp",
        "quantization": quantization | {"expert_layout": "split_switch_mlp"} | table,
        "capabilities": {"family": "zaya", "tool_parser": "zaya_xml"},
    }
    _write(folder, tensors, config, shards)
    return quantizer.exact


def compressed(folder: Path, form: str, *, numbered: bool = False) -> Arrays:
    """Experts in a format of compressed-tensors, stacked or `numbered` one by one, all else as transformers has it."""
    quantizer, tensors = Quantizer(), {}
    for name, array in weights().items():
        if ".experts." not in name:
            tensors[name] = mx.array(array)
            continue
        parts = _mxfp4(quantizer, name, array) if form == "mxfp4" else _fp8(quantizer, name, array)
        for suffix, packed in parts.items():
            if numbered:
                head, part = name.rsplit(".", 1)
                tensors |= {f"{head}.{expert}.{part}.{suffix}": each for expert, each in enumerate(packed)}
            else:
                tensors[f"{name}.{suffix}" if suffix != "weight" else name] = packed
    kind = {"mxfp4": "mxfp4-pack-quantized", "fp8": "float-quantized"}[form]
    ignored = {"ignore": ["re:^(?!.*experts).*$"], "quant_method": "compressed-tensors", "format": kind}
    _write(folder, tensors, CONFIG | {"quantization_config": ignored}, fp8=form == "fp8")
    return quantizer.exact


def _mxfp4(quantizer: Quantizer, name: str, array: np.ndarray) -> Tensors:
    packed = quantizer.pack(name, slice(None), array, group_size=32, bits=4, mode="mxfp4")
    return {"weight_packed": packed["weight"].view(mx.uint8), "weight_scale": packed["scales"]}


def _fp8(quantizer: Quantizer, name: str, array: np.ndarray) -> Tensors:
    scale = np.abs(array).max(axis=-1, keepdims=True) / 448
    stored = mx.to_fp8(mx.array(array / scale))
    exact = mx.from_fp8(stored, mx.float32) * mx.array(scale)
    quantizer.exact[name] = np.array(exact.astype(mx.bfloat16).astype(mx.float32))
    return {"weight": stored, "weight_scale": mx.array(scale)}


def _half_layers(experts: str) -> list[tuple[str, str, slice, np.ndarray]]:
    """Native name, name in half-layers, rows of the native array, and values of every tensor with stacked experts."""
    found = []
    for native, array in weights().items():
        if not native.endswith(("gate_up_proj", "down_proj")) or ".gate." in native:
            ((old, _),) = legacy({native: array}, CONFIG).items()
            found.append((native, old, slice(None), array))
            continue
        layer, width = int(native.split(".")[2]), CONFIG["moe_intermediate_size"]
        prefix = f"model.layers.{2 * layer + 1}.{experts}"
        if native.endswith("down_proj"):
            found.append((native, f"{prefix}down_proj.weight", slice(None), array))
            continue
        for part, rows in (("gate", slice(0, width)), ("up", slice(width, None))):
            found.append((native, f"{prefix}{part}_proj.weight", rows, array[:, rows]))
    return found


def _write(folder: Path, tensors: Tensors, config: dict[str, Any], shards: int = 1, *, fp8: bool = False) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    names, placed = sorted(tensors), {}
    for number in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number::shards]
        mx.save_safetensors(str(folder / file), {name: tensors[name] for name in part}, metadata={"format": "mlx"})
        placed |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    if fp8:
        _mark_as_fp8(folder / "model.safetensors")


def _mark_as_fp8(file: Path) -> None:
    """Set the type of the packed arrays, which MLX can read but not write."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for entry in header.values():
        if entry.get("dtype") == "U8":
            entry["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
