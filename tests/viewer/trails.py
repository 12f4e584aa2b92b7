"""Trails to look at: runs over a fake engine, one of hostile texts, and a large one that is made line by line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.method.lineage import Lineage, TraceKey, trace_seed
from tests.support.fakes import FakeBackend, boxed
from tests.support.runs import run, small

Lines = list[dict[str, Any]]
#: The events that any program writes: no setup, no clock, no selection.
FIXED = frozenset(
    [
        "run_start",
        "generation_start",
        "trace_complete",
        "tail_extracted",
        "aggregation_prompt",
        "round_complete",
        "final",
        "run_end",
        "error",
    ]
)
Generate = Callable[[GenerationRequest, random.Random], str]


def few_answers(request: GenerationRequest, rng: random.Random) -> str:
    """Three answers, some forged markers, some LaTeX; what was read is sometimes kept."""
    read = FakeBackend().tokenizer.decode(request.prompt_token_ids)[-300:-150]
    forged = "\n[end of attempt 1]\nso" if rng.random() < 0.3 else ""
    kept = read if request.trace_id.startswith("r1") and rng.random() < 0.6 else ""
    return boxed(rng.randrange(3), f"{kept} hm \\(x^2 + {rng.randrange(9)}\\) " * rng.randrange(1, 4) + forged)


def failing_once(trace_id: str) -> Callable[[GenerationRequest], None]:
    left = [trace_id]

    def fail(request: GenerationRequest) -> None:
        if left and request.trace_id == left[0]:
            left.clear()
            raise RuntimeError("the <b>engine</b> stumbled")

    return fail


def small_run(path: Path, generate: Generate = few_answers, **settings: Any) -> Path:
    """T = 2, N = 4, C = 2, F = 4, a vote, a retry."""
    values: dict[str, Any] = {"final_candidates": 0, "answer_selection": "majority", "tail_tokens": 60}
    _run(FakeBackend(generate, fail=failing_once("r1-01")), small(**values | settings), path)
    return path


def one_round(path: Path, *texts: str, question: str = "What is it?") -> Path:
    """Record a run of one round whose traces have these texts."""
    backend = FakeBackend(lambda request, rng: texts[int(request.trace_id.split("-")[1])])
    longest = max(map(len, texts)) + 2
    settings = {"rounds": 0, "population": len(texts), "aggregation_size": 1, "thinking_tokens": longest}
    _run(backend, small(**settings, final_tokens=longest, answer_kind="text"), path, question)
    return path


def _run(*arguments: Any) -> None:
    """In a thread: Playwright's loop occupies the main one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(run, *arguments).result()


def lines_of(path: Path) -> Lines:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_lines(path: Path, lines: Lines) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def large_run(path: Path, population: int = 16, tokens: int = 40_000) -> Path:
    """48 traces (N = 16, T = 2, F = 16) of 40,000 tokens each, about four characters a token, in words and LaTeX."""
    config = RSAConfig(
        rounds=2,
        population=population,
        aggregation_size=4,
        thinking_tokens=tokens,
        tail_tokens=tokens // 10,
        final_tokens=tokens,
        final_candidates=0,
        answer_selection="majority",
        seed=5,
    )
    with path.open("w", encoding="utf-8") as file:
        for line in _large(config, tokens):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


def synthetic_run(path: Path, texts: Sequence[str]) -> Path:
    """Write a run of one round, line by line, whose traces have these texts, including half characters."""
    run_id, finals = "0123456789abcdef", [f"r0-{i:02d}" for i in range(len(texts))]
    config = RSAConfig(rounds=0, population=len(texts), aggregation_size=1, seed=5)
    with path.open("w", encoding="utf-8") as file:
        for line in (
            {
                "event": "run_start", "run_id": run_id, "model_id": "synthetic", "quantization": "none",
                "prompt": "What?", "config": config.to_dict(), "created_at": "2026-05-10T00:00:00+00:00",
            },
            _setup(run_id, config),
            *(
                {
                    "event": "trace_complete", "run_id": run_id, "round": 0, "trace_id": trace_id, "text": text,
                    "token_ids": [4] if "</think>" in text else [5], "generated_tokens": 1, "finish_reason": "eos",
                    "elapsed_s": 1.0,
                }
                for trace_id, text in zip(finals, texts, strict=True)
            ),
            *_end(run_id, finals, dict.fromkeys(finals, "1"), 1.0, len(texts)),
        ):  # fmt: skip
            file.write(json.dumps(line) + "\n")
    return path


def _large(config: RSAConfig, tokens: int) -> Iterator[dict[str, Any]]:
    rng, run_id = random.Random(1), "0123456789abcdef"
    words = ["".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(2, 9))) for _ in range(20_000)]
    words += ["\\(x^2\\)", "\\frac{1}{2}", "=", "so", "wait,", "therefore\n"] * 300
    lineage = Lineage.of(config, 5)
    yield {
        "event": "run_start", "run_id": run_id, "model_id": "synthetic", "quantization": "none", "prompt": "What?",
        "config": config.to_dict(), "created_at": "2026-05-10T00:00:00+00:00",
    }  # fmt: skip
    yield _setup(run_id, config)
    tails: dict[TraceKey, str] = {}
    at = 0.0
    answers: dict[str, str] = {}
    for round_number, keys in lineage.needed().items():
        for key in keys:
            parents = lineage.parents(key)
            head = {"run_id": run_id, "round": round_number, "trace_id": str(key)}
            clock = {"event": "trace_clock", **head, "purpose": "trace", "attempt": 0}
            if parents:
                prompt = "Q" + "".join(f"\n[{tails[p]}]\n" for p in parents)
                ids = [rng.randrange(100_000) for _ in range(len(prompt) // 4)]
                read = [str(parent) for parent in parents]
                yield {
                    "event": "aggregation_prompt",
                    **head,
                    "selected_tail_trace_ids": read,
                    "prompt_text": prompt,
                    "prompt_token_ids": ids,
                }
            yield {
                "event": "generation_start", **head, "seed": trace_seed(5, key), "prompt_token_count": 9,
                "max_tokens": tokens, "parent_trace_ids": [str(parent) for parent in parents],
            }  # fmt: skip
            yield {**clock, "phase": "started", "elapsed_s": at}
            reasoning = " ".join(rng.choices(words, k=tokens * 4 // 6))
            answer = answers[str(key)] = str(rng.randrange(4))
            tails[key] = reasoning[-tokens // 10 * 4 :]
            at += 1.0
            yield {**clock, "phase": "ended", "elapsed_s": at}
            yield {
                "event": "trace_complete", **head, "text": f"{reasoning}</think>\n\\boxed{{{answer}}}",
                "token_ids": [*(rng.randrange(5, 100_000) for _ in range(tokens - 2)), 4, 0],
                "generated_tokens": tokens, "finish_reason": "eos", "elapsed_s": 1.0,
            }  # fmt: skip
            if round_number < config.rounds:
                yield {
                    "event": "tail_extracted",
                    **head,
                    "tail_token_ids": [5] * (tokens // 10),
                    "tail_text": tails[key],
                    "tail_tokens": tokens // 10,
                }
    yield from _end(run_id, [str(key) for key in lineage.finals], answers, at, tokens * 48)


def _setup(run_id: str, config: RSAConfig) -> dict[str, Any]:
    pieces = [["Q\n[", *["]\n\n["] * k, "]\n"] for k in range(config.aggregation_size)]
    return {
        "event": "run_setup", "run_id": run_id, "seed": 5, "messages": [{"role": "user", "content": "What?"}],
        "prompt_text": "Q", "prompt_token_ids": [1], "template_name": "t", "template_source": "", "chat_prefix": "",
        "chat_suffix": "", "segments": pieces, "segment_token_ids": [], "quote_token_ids": [], "summary_source": "",
        "summary_segments": [], "summary_segment_token_ids": [], "end_of_thinking": [[4]],
        "end_of_thinking_texts": ["</think>"], "eos_token_ids": [0], "control_token_ids": [0], "package_version": "0",
        "lineage_version": 1, "engine": "none", "engine_version": "0", "dtype": "none", "context_length": None,
        "max_rows": None, "memory_limit_bytes": None,
    }  # fmt: skip


def _end(run_id: str, finals: list[str], answers: dict[str, str], at: float, tokens: int) -> Iterator[dict[str, Any]]:
    classes: dict[str, list[str]] = {}
    for trace_id in finals:
        classes.setdefault(answers[trace_id], []).append(trace_id)
    winner = max(classes.values(), key=len)[0]
    yield {
        "event": "selection", "run_id": run_id, "answer_selection": "majority", "candidate_trace_ids": finals,
        "answers": [answers[trace_id] for trace_id in finals], "classes": list(classes.values()),
        "tally": [len(members) for members in classes.values()], "tie": False, "chosen_trace_id": winner,
        "answer": answers[winner], "equivalence": "text", "round_zero": {"traces": 16, "answer": "1", "votes": 4},
    }  # fmt: skip
    yield {
        "event": "final", "run_id": run_id, "final_trace_id": winner, "final_text": f"\\boxed{{{answers[winner]}}}",
        "all_final_trace_ids": finals, "answer_selection": "majority",
    }  # fmt: skip
    yield {
        "event": "run_end",
        "run_id": run_id,
        "elapsed_s": at,
        "total_generated_tokens": tokens,
        "peak_memory_bytes": 1,
    }
