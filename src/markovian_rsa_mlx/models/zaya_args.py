"""The sizes of a ZAYA model, read from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .zaya_config import native_config


@dataclass
class ModelArgs:
    """The native config. `from_dict` also reads the legacy formats."""

    model_type: str = "zaya"
    vocab_size: int = 262272
    hidden_size: int = 2048
    num_hidden_layers: int = 40
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 128
    cca_time0: int = 2
    cca_time1: int = 2
    num_experts: int = 16
    moe_intermediate_size: int = 2048
    router_hidden_size: int = 256
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072
    tie_word_embeddings: bool = True
    sliding_window: int | None = None
    layer_types: list[str] = field(default_factory=list)
    rope_parameters: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, params: Mapping[str, Any]) -> ModelArgs:
        """Read a config.json. Raises `ValueError` for a variant that is not implemented."""
        native = native_config(params)
        names = {each.name for each in fields(cls)}
        return cls(**{key: value for key, value in native.items() if key in names})

    def __post_init__(self) -> None:
        if not self.layer_types or not self.rope_parameters:
            native = native_config(vars(self))
            self.layer_types, self.rope_parameters = native["layer_types"], native["rope_parameters"]
        assert self.num_attention_heads % self.num_key_value_heads == 0

    @property
    def conv_rows(self) -> int:
        """The earlier rows that the two convolutions need."""
        return self.cca_time0 + self.cca_time1 - 2
