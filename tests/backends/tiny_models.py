"""Small random-weight models with a small tokenizer, written as folders that mlx-lm loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB = 320
EOS, THINK, END_THINK, BOT = 316, 317, 318, 319
CHAT = (
    "{% for m in messages %}<|bot|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% if enable_thinking %}<think>{% endif %}{% endif %}"
)

_BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "head_dim": 16,
    "torch_dtype": "float32",
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_BASE, "model_type": "llama"},
    "qwen3": {**_BASE, "model_type": "qwen3"},
    "gemma3_text": {
        **_BASE,
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "sliding_window": 32,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
        "rope_global_base_freq": 10000.0,
        "rope_local_base_freq": 10000.0,
        "rope_traditional": False,
    },
    "gpt_oss": {
        **_BASE,
        "model_type": "gpt_oss",
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_scaling": None,
    },
    "mamba2": {
        "model_type": "mamba2",
        "num_heads": 8,
        "head_dim": 16,
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 128,
        "state_size": 16,
        "num_hidden_layers": 2,
        "layer_norm_epsilon": 1e-5,
        "expand": 2,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": False,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": 4,
        "max_position_embeddings": 4096,
        "torch_dtype": "float32",
        "eos_token_id": EOS,
    },
    "falcon_h1": {
        **_BASE,
        "model_type": "falcon_h1",
        "attention_bias": False,
        "mamba_chunk_size": 16,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
        "mamba_d_ssm": 64,
        "mamba_d_state": 16,
        "mamba_expand": 1,
        "mamba_n_groups": 1,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_norm_before_gate": False,
        "mamba_proj_bias": False,
        "mamba_rms_norm": False,
        "mamba_use_mlp": True,
        "mlp_bias": False,
        "projectors_bias": False,
        "time_step_limit": [0.0, 100.0],
    },
}


def build(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A model with random weights, scaled so that sampling has choices."""
    config = {**CONFIGS[kind], **changes}
    model_class, args = _get_classes(config)
    model = model_class(args.from_dict(config))
    key = mx.random.key(seed)
    weights = []
    for name, array in tree_flatten(model.parameters()):
        key, own = mx.random.split(key)
        if array.ndim >= 2 and mx.issubdtype(array.dtype, mx.floating):
            array = mx.random.normal(array.shape, key=own) * (0.25 if "embed" in name else 0.5 / array.shape[-1] ** 0.5)
        weights.append((name, array))
    model.load_weights(weights)
    mx.eval(model.parameters())
    return model


def write(folder: Path, kind: str = "llama", seed: int = 0, chat_template: str | None = CHAT, **changes: Any) -> Path:
    """A model's folder: config.json, model.safetensors and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIGS[kind], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    model = build(kind, seed, **changes)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    write_tokenizer(folder, chat_template)
    return folder


def write_tokenizer(folder: Path, chat_template: str | None = CHAT) -> None:
    """A byte tokenizer with an EOS, a chat marker and thinking marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(alphabet)}
    for index in range(len(vocab), EOS):
        vocab[f"<unused{index}>"] = index
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.add_special_tokens(["<|bot|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
