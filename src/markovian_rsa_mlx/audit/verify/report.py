"""The report of a check: its findings, and the facts of a file that were derived, unchecked or trusted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The facts that every check derives from the file.
FROM_FILE = (
    "the form and the order of the lines",
    "the lineage: needed traces, parents, seeds and attempts",
    "the texts of prompts, and their ids as those of the template with those of the tails between",
    "tails as the last ids of their traces",
    "limits of tokens, seconds and concurrency, the context, counts, totals, and the order of clocks",
    "answers, votes, judgements and the choice, from the texts of the traces",
)
#: The facts that a check with the tokenizer derives in addition.
FROM_TOKENIZER = (
    "the text of every id, and that ids are within the vocabulary",
    "the chat's rendering, the ids of all static texts, and the model's control ids",
    "the places of quotes and of torn characters",
)
#: The fields that nothing else determines, by event. A dot leads into an object.
FREE_FIELDS: dict[str, frozenset[str]] = {
    "run_start": frozenset(
        {
            "run_id", "model_id", "quantization", "created_at",
            "config.temperature", "config.top_p", "config.top_k", "config.min_p", "config.final_temperature",
            "config.final_top_p", "config.final_top_k", "config.final_min_p",
            "config.memory_limit_gb", "config.concurrency", "config.max_retries", "config.token_budget",
            "config.time_budget_s", "config.summary_prompt",  # where there are no summaries
        }
    ),
    "run_setup": frozenset(
        {
            "run_id", "package_version", "engine", "engine_version", "dtype", "context_length", "max_rows",
            "memory_limit_bytes", "tokenizer", "tokenizer_digest", "model_digest",
        }
    ),
    "run_resumed": frozenset(
        {
            "run_id", "created_at", "package_version", "concurrency", "memory_limit_gb", "max_retries", "token_budget",
            "time_budget_s", "elapsed_before_s", "dropped_bytes",
        }
    ),
    "trace_clock": frozenset({"elapsed_s", "steps", "drafted", "accepted"}),
    "trace_complete": frozenset({"elapsed_s"}),
    "trace_confidence": frozenset({"mean_logprob", "lowest_window_logprob"}),
    "summary_complete": frozenset({"elapsed_s"}),
    "judgement": frozenset({"started_s", "elapsed_s"}),
    "attempt_discarded": frozenset({"generated_tokens"}),
    "round_complete": frozenset({"memory_estimate_bytes", "elapsed_s"}),
    "trace_retry": frozenset({"message"}),
    "model_stats": frozenset({"stats.counts"}),
    "run_end": frozenset({"elapsed_s", "peak_memory_bytes"}),
    "error": frozenset({"message"}),
}  # fmt: skip
#: The facts that no check can derive from a file.
TRUSTED = (
    "that the model generates these ids with these seeds (only generating again shows it)",
    "names and versions of the model, the engine and the package",
    "times, memory and limits, as far as they are possible",
    "log-probabilities of traces, as far as they are possible, and whether some are missing",
    "sampling settings, and the reasons of failures",
)
#: The same for a file of an earlier version.
OLDER_RULES = "that an earlier version recorded the file, so that its rules for answers, marks and special tokens apply"


@dataclass(frozen=True)
class Report:
    """The result for a file whose lines all follow. The file of an unfinished run is consistent so far.

    `traces` counts finished traces, `given_up` failed ones. `torn_bytes` is the length of a torn last line. `assumed`
    lists what the check took on trust for lack of a tokenizer or of an equivalence of answers. `texts_checked` is False
    if there was no tokenizer: texts may then have been rewritten, with all that follows from them. `older_rules` is
    True for a file that lacks fields of this version. The rules of earlier versions for answers, marks and special
    tokens apply to it, and nothing in it shows that an earlier version recorded it.
    """

    path: Path
    run_id: str
    finished: bool
    lines: int
    traces: int
    given_up: int
    generated_tokens: int
    sittings: int
    torn_bytes: int
    assumed: tuple[str, ...]
    texts_checked: bool = False
    older_rules: bool = False

    @property
    def verdict(self) -> str:
        """One sentence for a user."""
        rules = ", by the rules of an earlier version" if self.older_rules else ""
        unchecked = "" if self.texts_checked else "; texts not checked against token ids"
        if self.texts_checked and self.assumed:
            unchecked = f"; not checked {' and '.join(self.assumed)}"
        if not self.finished:
            return f"unfinished, consistent so far{unchecked}{rules}: {self.lines:,} lines follow from each other"
        verified = "structure verified" if unchecked else "verified"
        return f"{verified}{unchecked}{rules}: all {self.lines:,} lines follow from each other"

    @property
    def is_complete(self) -> bool:
        """True if the check took nothing on trust that it derives from other files."""
        return self.texts_checked and not self.assumed

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON: the counts, and the facts that were checked, unchecked or trusted."""
        return {
            "path": str(self.path),
            "valid": True,
            "verdict": self.verdict,
            "run_id": self.run_id,
            "finished": self.finished,
            "texts_checked": self.texts_checked,
            "older_rules": self.older_rules,
            "lines": self.lines,
            "traces": self.traces,
            "failed_traces": self.given_up,
            "generated_tokens": self.generated_tokens,
            "sessions": self.sittings,
            "torn_bytes": self.torn_bytes,
            "checked": [*FROM_FILE, *(FROM_TOKENIZER if self.texts_checked else ())],
            "unchecked": [*(() if self.texts_checked else FROM_TOKENIZER), *self.assumed],
            "trusted": [*TRUSTED, *([OLDER_RULES] if self.older_rules else [])],
        }
