"""An adapter that is on for some rows of a batch only: a LoRA of mlx-lm for traces that aggregate.

The weights are in memory once. Each adapted layer computes its plain output, and adds the adapter's part in the rows
that use it. The output of the other rows is taken as it is, so that it equals that of the model without the adapter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...errors import ModelError
from ...hub import ADAPTER_FILES

_SWITCH = "aggregation_adapter"


class AdapterSwitch:
    """The rows of the next model call that use the adapter: all, none, or a list with a flag for each."""

    def __init__(self) -> None:
        self.rows: bool | list[bool] = False

    def select(self, rows: Sequence[bool]) -> None:
        self.rows = rows[0] if len(set(rows)) == 1 else list(rows)

    def flags(self, items: int) -> list[bool]:
        """Return the flag of each item of a first axis, into which a model may have folded the positions of rows."""
        assert isinstance(self.rows, list)
        if items % len(self.rows):
            raise ModelError(f"The adapter's rows cannot be told apart: {items} items of {len(self.rows)} rows.")
        return [flag for flag in self.rows for _ in range(items // len(self.rows))]

    def merge(self, plain: mx.array, adapted: mx.array) -> mx.array:
        """Return the rows of `adapted` that use the adapter, and those of `plain` that do not."""
        if isinstance(self.rows, bool):
            return adapted if self.rows else plain
        flags = mx.array(self.flags(plain.shape[0]))
        return mx.where(flags.reshape(-1, *[1] * (plain.ndim - 1)), adapted, plain)


@contextlib.contextmanager
def adapter_on(model: Any, rows: Sequence[bool]) -> Iterator[None]:
    """Use the adapter in these rows of the model calls within. Outside it is off."""
    switch = getattr(model, _SWITCH, None)
    if switch is None:
        yield
        return
    switch.select(rows)
    try:
        yield
    finally:
        switch.rows = False


def adapter_digest(folder: Path) -> str:
    """Return the SHA-256 of an adapter's files. Raises `ModelError` if one is missing."""
    digest = hashlib.sha256()
    for name in ADAPTER_FILES:
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise _unreadable(folder, name, error) from error
        digest.update(f"{name}\n{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def adapter_bytes(folder: Path) -> int:
    """Return the bytes of an adapter's weights. Raises `ModelError` if there are none."""
    try:
        return (folder / ADAPTER_FILES[1]).stat().st_size
    except OSError as error:
        raise _unreadable(folder, ADAPTER_FILES[1], error) from error


def _unreadable(folder: Path, name: str, error: OSError) -> ModelError:
    return ModelError(
        f"The aggregation adapter {str(folder)!r} has no readable {name} ({error.strerror}). Name a folder that "
        "mlx_lm.lora has written."
    )


def add_adapter(model: Any, folder: Path) -> str:
    """Add a LoRA to a loaded model, switched off, and return its digest. Raises `ModelError`."""
    from mlx_lm.tuner.utils import load_adapters

    digest = adapter_digest(folder)
    try:
        kind = json.loads((folder / ADAPTER_FILES[0]).read_text(encoding="utf-8")).get("fine_tune_type", "lora")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"The adapter_config.json in {str(folder)!r} is not a JSON object. Train it again.") from error
    if kind != "lora":
        raise ModelError(
            f"The aggregation adapter {str(folder)!r} has the type {kind!r}, and only LoRA can be switched by row. "
            "Train it with --fine-tune-type lora."
        )
    try:
        load_adapters(model, str(folder))
    except Exception as error:
        short = " ".join(str(error).split())[:300]
        raise ModelError(
            f"The aggregation adapter {str(folder)!r} does not fit the model ({type(error).__name__}: {short}). "
            "Name an adapter that was trained on it."
        ) from error
    _make_switchable(model)
    model.eval()
    return digest


def keep_switch(model: Any, other: Any) -> Any:
    """Return `other`, a model over the modules of `model`, with the switch of its adapter."""
    if (switch := getattr(model, _SWITCH, None)) is not None:
        setattr(other, _SWITCH, switch)
    return other


def _make_switchable(model: Any) -> None:
    from mlx_lm.tuner.lora import LoRASwitchLinear

    switch = AdapterSwitch()
    classes = _switched_classes()
    for _, module in list(model.named_modules()):
        children = list(module.children().values()) if hasattr(module, "children") else []
        if any(isinstance(child, LoRASwitchLinear) for child in children):
            _switch_class(module, _split_rows(type(module)), switch)
        elif type(module) in classes:
            _switch_class(module, classes[type(module)], switch)
    setattr(model, _SWITCH, switch)


def _switch_class(module: Any, switched: type, switch: AdapterSwitch) -> None:
    module.__class__ = switched
    module.switch = switch
    for child in module.children().values():
        if type(child).__name__ == "LoRASwitchLinear":
            child.__class__ = _switched_experts()
            child.switch = switch


def _switched_experts() -> type:
    from mlx_lm.tuner.lora import LoRASwitchLinear

    class SwitchedExperts(LoRASwitchLinear):  # type: ignore[misc]
        """The expert layer of a block whose rows are divided before (`_split_rows`): on for all or for none."""

        def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> Any:
            if self.switch.rows:
                return super().__call__(x, indices, sorted_indices)
            return self.linear(x, indices, sorted_indices=sorted_indices)

    return SwitchedExperts


def _switched_classes() -> dict[type, type]:
    """Return the switched class of each layer that works row by row."""
    from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear

    class SwitchedLinear(LoRALinear):  # type: ignore[misc]
        def __call__(self, x: mx.array) -> Any:
            plain = self.linear(x)
            if not self.switch.rows:
                return plain
            part = (x @ self.lora_a) @ self.lora_b
            return self.switch.merge(plain, plain + (self.scale * part).astype(x.dtype))

    class SwitchedEmbedding(LoRAEmbedding):  # type: ignore[misc]
        def __call__(self, x: mx.array) -> Any:
            plain = self.embedding(x)
            if not self.switch.rows:
                return plain
            part = self.lora_a[x] @ self.lora_b
            return self.switch.merge(plain, plain + (self.scale * part).astype(plain.dtype))

        def as_linear(self, x: mx.array) -> Any:
            plain = self.embedding.as_linear(x)
            if not self.switch.rows:
                return plain
            part = (x @ self.lora_b.T) @ self.lora_a.T
            return self.switch.merge(plain, plain + (self.scale * part).astype(x.dtype))

    return {LoRALinear: SwitchedLinear, LoRAEmbedding: SwitchedEmbedding}


def _split_rows(block: type) -> type:
    """Return the class of a block of experts that runs the rows with the adapter and those without it apart.

    Experts sort the tokens of all rows, so that a layer within cannot tell the rows.
    """

    class SplitRows(block):  # type: ignore[misc]
        def __call__(self, x: mx.array, indices: mx.array, *rest: Any) -> Any:
            rows = self.switch.rows
            if isinstance(rows, bool):
                return super().__call__(x, indices, *rest)
            flags = self.switch.flags(x.shape[0])
            order = sorted(range(len(flags)), key=flags.__getitem__)
            parts = []
            try:
                for flag in (False, True):
                    self.switch.rows = flag
                    chosen = mx.array([item for item in order if flags[item] == flag])
                    parts.append(super().__call__(x[chosen], indices[chosen], *rest))
            finally:
                self.switch.rows = rows
            return mx.concatenate(parts)[mx.array(sorted(range(len(order)), key=order.__getitem__))]

    SplitRows.__name__ = block.__name__
    return SplitRows
