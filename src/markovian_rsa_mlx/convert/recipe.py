"""The widths of a converted model's weights: one for all, or one each for experts, attention and embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, ModelError

BITS = (4, 8)
MODES = ("affine", "mxfp4")
#: Weights that share a scale, by mode. MXFP4 allows only this one.
GROUP_SIZES = {"affine": 64, "mxfp4": 32}
_PARTS = ("expert", "attention", "embedding")

Predicate = Callable[[str, Any], bool | dict[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """The settings of a quantization. `bits` is for every part without its own; None leaves a part whole.

    In the mode `mxfp4` 4 bits mean MXFP4, and `bits` is 4 unless it is given. Embeddings are affine in any mode, with 8
    bits unless they are given: they are also the head of many models. Raises `ConfigError`.
    """

    bits: int | None = None
    mode: str = "affine"
    expert_bits: int | None = None
    attention_bits: int | None = None
    embedding_bits: int | None = None

    def __post_init__(self) -> None:
        for name in ("bits", *(f"{part}_bits" for part in _PARTS)):
            value = getattr(self, name)
            if value is not None and value not in BITS:
                raise ConfigError(f"{name} must be {' or '.join(map(str, BITS))} (got {value}).")
        if self.mode not in MODES:
            raise ConfigError(f"mode must be {' or '.join(MODES)} (got {self.mode!r}).")
        if self.mode == "mxfp4" and self.bits == 8:
            raise ConfigError("mode mxfp4 has 4 bits; leave bits out, or set expert_bits or attention_bits to 8.")

    @property
    def quantizes(self) -> bool:
        """Whether any weight is quantized."""
        return self.mode != "affine" or any(
            getattr(self, name) is not None for name in ("bits", *(f"{part}_bits" for part in _PARTS))
        )

    @property
    def default(self) -> dict[str, Any]:
        """The settings of a part without its own, for the config."""
        return _settings(self.bits or 4, self.mode)

    def predicate(self, model: Any) -> Predicate:
        """Return mlx-lm's predicate by path and module: False, or bits, group size and mode.

        The model's own predicate decides which modules are not quantized at all. Raises `ModelError` if the model has
        none of the parts that have bits of their own.
        """
        own = getattr(model, "quant_predicate", None)
        paths = [path for path, module in model.named_modules() if hasattr(module, "to_quantized")]
        for part in _PARTS:
            if getattr(self, f"{part}_bits") is not None and not any(_part(path) == part for path in paths):
                raise ModelError(f"The model has no {part} weights, so {part}_bits has no effect; leave it out.")

        def choose(path: str, module: Any) -> bool | dict[str, Any]:
            suggested = True if own is None else own(path, module)
            settings = self._settings_of(_part(path), suggested)
            if settings is None or module.weight.shape[-1] % settings["group_size"]:
                return False
            return settings

        return choose

    def _settings_of(self, part: str | None, suggested: bool | dict[str, Any]) -> dict[str, Any] | None:
        if suggested is False:
            return None
        whole = self.bits or (4 if self.mode == "mxfp4" else None)
        bits = (getattr(self, f"{part}_bits") if part else None) or whole
        if bits is None:
            return None
        if part == "embedding":
            if self.embedding_bits is not None:
                return _settings(self.embedding_bits, "affine")
            if self.mode == "mxfp4":
                return _settings(8, "affine")
        if isinstance(suggested, dict) and (part is None or getattr(self, f"{part}_bits") is None):
            return {"mode": "affine", **suggested}
        return _settings(bits, self.mode)


def _settings(bits: int, mode: str) -> dict[str, Any]:
    mode = mode if bits == 4 else "affine"
    return {"group_size": GROUP_SIZES[mode], "bits": bits, "mode": mode}


def _part(path: str) -> str | None:
    """Return the part that a module belongs to by its name, or None."""
    names = path.split(".")
    if names[-1] in ("embed_tokens", "lm_head", "wte", "embed_out"):
        return "embedding"
    if any(name in ("experts", "switch_mlp") for name in names):
        return "expert"
    return "attention" if any(name.endswith(("attn", "attention")) for name in names) else None


def table_of(model: Any) -> dict[str, Any]:
    """Return the quantization of a model for its config.json, or {} if no module is quantized.

    It has the settings that most bytes have, those of the other modules by path, and False for a module that is whole.
    """
    own = getattr(model, "quant_predicate", None)
    by_path: dict[str, dict[str, Any] | bool] = {}
    sizes: Counter[tuple[tuple[str, Any], ...]] = Counter()
    for path, module in model.named_modules():
        if hasattr(module, "bits") and hasattr(module, "group_size"):
            mode = getattr(module, "mode", "affine")
            by_path[path] = settings = {"group_size": module.group_size, "bits": module.bits, "mode": mode}
            sizes[tuple(settings.items())] += module.weight.nbytes
        elif hasattr(module, "to_quantized") and (own is None or own(path, module)):
            by_path[path] = False
    if not sizes:
        return {}
    default = dict(sizes.most_common(1)[0][0])
    return default | {path: settings for path, settings in sorted(by_path.items()) if settings != default}
