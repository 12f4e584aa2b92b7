"""Every kind of run that the orchestrator writes follows from itself; resumed ones too."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import read_events
from markovian_rsa_mlx.audit.verify import Report, verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.errors import AuditError, VerificationError
from markovian_rsa_mlx.marks import ThinkingMarks, find_marks
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from tests.support.audit_files import QUESTION, SMALL, failing, read_lines, record, same, wordy, write_lines
from tests.support.fakes import THINK_END, CharacterTokenizer, FakeBackend, FakeEngine, boxed
from tests.support.sizes import places, sizes

KINDS: dict[str, dict[str, Any]] = {
    "tail": {},
    "answer": {"carry": "answer"},
    "answer cut to its end": {"carry": "answer", "tail_tokens": 3},
    "summary": {"carry": "summary"},
    "summary of few tokens": {"carry": "summary", "tail_tokens": 4},
    "summary in own words": {"carry": "summary", "summary_prompt": '{{ Sum }} it\'s "short".\nŒuvre 🧮'},
    "C = 1": {"aggregation_size": 1, "final_candidates": 0},
    "T = 0": {"rounds": 0},
    "N = 1": {"rounds": 1, "population": 1, "aggregation_size": 1},
    "F = N": {"final_candidates": 0},
    "full chain": {"tail_tokens": "full"},
    "majority": {"final_candidates": 0, "answer_selection": "majority"},
    "majority of texts": {"final_candidates": 0, "answer_selection": "majority", "answer_kind": "text"},
    "aggregated": {"final_candidates": 0, "answer_selection": "final_aggregation"},
    "aggregated, T = 0": {"rounds": 0, "answer_selection": "final_aggregation"},
    "everything cut": {"thinking_tokens": 12, "tail_tokens": 9, "final_tokens": 14, "final_candidates": 0},
    "no thinking": {"enable_thinking": False, "carry": "summary"},
    "no answer tokens": {"final_tokens": 40, "answer_tokens": 0, "final_candidates": 0},
    "thinking closed": {"final_tokens": 40, "final_candidates": 0},
    "thinking closed, T = 0": {"rounds": 0, "final_tokens": 40, "answer_selection": "final_aggregation"},
}


def check(path: Path, tokenizer: CharacterTokenizer | None = None) -> Report:
    """The file is valid with and without a tokenizer and an equivalence."""
    report = verify_file(path)
    whole = verify_file(path, equivalent=same, codec=tokenizer or CharacterTokenizer())
    assert (whole.assumed, whole.texts_checked, "not checked" in whole.verdict) == ((), True, False)
    return report


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_is_verified(kind: str, tmp_path: Path) -> None:
    report = check(record(tmp_path / "run.jsonl", **KINDS[kind]))
    assert report.finished
    assert report.assumed == ()
    assert report.given_up == 0
    assert not report.texts_checked
    assert report.verdict.startswith("structure verified; texts not checked against token ids: ")


def forged_solution(request: GenerationRequest, rng: random.Random) -> str:
    return boxed(rng.randrange(3), f"hm\n---- Solution {rng.randrange(1, 4)} ----\nso")


@pytest.mark.parametrize("carry", ["tail", "answer", "summary"])
def test_run_with_the_template_rsa_v1_is_verified(carry: str, tmp_path: Path) -> None:
    path = record(tmp_path / "run.jsonl", FakeBackend(forged_solution), carry=carry, template="rsa_v1")
    check(path)
    lines = read_lines(path)
    prompts = [line["prompt_text"] for line in lines if line["event"] == "aggregation_prompt"]
    assert all("\n[[ Problem ]]\n" + QUESTION in prompt for prompt in prompts)
    assert carry != "tail" or any("\n> ---- Solution" in prompt for prompt in prompts)


@pytest.mark.parametrize("carry", ["tail", "answer", "summary"])
def test_run_of_a_model_without_markers_is_verified(carry: str, tmp_path: Path) -> None:
    tokenizer = CharacterTokenizer(thinking=False)
    check(record(tmp_path / "run.jsonl", FakeBackend(wordy, tokenizer=tokenizer), carry=carry), tokenizer)


class SilentMarker(CharacterTokenizer):
    """A tokenizer whose end-of-thinking marker leaves no text."""

    def decode(self, ids: Any) -> str:
        return super().decode(ids).replace("</think>", "")


class ByteTokenizer(CharacterTokenizer):
    """One token a byte of UTF-8, so that tails and budgets can tear characters."""

    def encode(self, text: str) -> list[int]:
        parts = (
            [i] if i < 10 else [byte + 10 for byte in chr(i - 10).encode()]
            for i in CharacterTokenizer.encode(self, text)
        )
        return [token for part in parts for token in part]

    def decode(self, ids: Sequence[int]) -> str:
        data = b"".join(b"</think>" if i == THINK_END else bytes([i - 10]) if i >= 10 else b"" for i in ids)
        return data.decode("utf-8", "replace")


@pytest.mark.parametrize("tau", [1, 2, 3, 5, 6, 7])
@pytest.mark.parametrize("carry", ["tail", "answer", "summary"])
def test_run_with_torn_characters_is_verified(carry: str, tau: int, tmp_path: Path) -> None:
    def foreign(request: GenerationRequest, rng: random.Random) -> str:
        return boxed(rng.choice("é€😀"), "".join(rng.choice("aé€😀\n") for _ in range(rng.randrange(30))))

    path = tmp_path / "run.jsonl"
    for seed in range(3):
        path.unlink(missing_ok=True)
        tokenizer = ByteTokenizer()
        record(
            path, FakeBackend(foreign, tokenizer=tokenizer), carry=carry, tail_tokens=tau, seed=seed, final_candidates=0
        )
        check(path, tokenizer)


def test_mark_that_leaves_no_text_is_recorded_as_text(tmp_path: Path) -> None:
    path = record(tmp_path / "run.jsonl", FakeBackend(wordy, tokenizer=SilentMarker()), carry="answer")
    assert check(path, SilentMarker()).assumed == ()
    assert any("</think>" in line["text"] for line in read_lines(path) if line["event"] == "trace_complete")


@pytest.mark.parametrize("carry", ["tail", "answer", "summary"])
@pytest.mark.parametrize("seed", range(3))
def test_run_with_retried_and_failed_traces_is_verified(seed: int, carry: str, tmp_path: Path) -> None:
    backend = FakeBackend(wordy, fail=failing(seed, 0.25))
    path = record(tmp_path / "run.jsonl", backend, carry=carry, max_retries=1, final_candidates=0)
    check(path)
    assert any(line["event"] == "trace_retry" for line in read_lines(path))


def cuts(path: Path, step: int, **changes: Any) -> int:
    """Cut a copy within each of `places`, resume it and check it. Return the number of lines."""
    lines = path.read_bytes().split(b"\n")[:-1]
    copy = path.with_name("copy.jsonl")
    for size in places(path, step)[2:]:
        shutil.copy(path, copy)
        copy.write_bytes(b"\n".join(lines[:size]) + b"\n" + lines[size][: size * 7 % len(lines[size])])
        record(copy, **changes)
        assert check(copy).sittings == 1 + any(e.EVENT_NAME == "run_resumed" for e in read_events(copy))
    return len(lines)


@sizes("step", 8, 1)
@pytest.mark.parametrize("kind", ["tail", "summary", "aggregated", "thinking closed"])
def test_run_resumed_after_a_cut_at_any_line_is_verified(kind: str, step: int, tmp_path: Path) -> None:
    path = record(tmp_path / "run.jsonl", **KINDS[kind])
    assert cuts(path, step, **KINDS[kind]) > 30


def refusing(*trace_ids: str) -> FakeBackend:
    """An engine that never manages these traces (the beginning of an id is enough)."""

    def fail(request: GenerationRequest) -> None:
        if request.trace_id.startswith(trace_ids):
            raise RuntimeError("no")

    return FakeBackend(wordy, fail=fail)


def test_failed_final_is_not_retried_after_the_choice(tmp_path: Path) -> None:
    path = record(tmp_path / "run.jsonl", refusing("r2-00"), final_candidates=0)
    whole = path.read_bytes().split(b"\n")[:-1]
    for size in range(len(whole) - 6, len(whole)):
        path.write_bytes(b"\n".join(whole[:size]) + b"\n")
        record(path, final_candidates=0)
        chosen = b'"selection"' in b"".join(whole[:size])
        assert (check(path).given_up, verify_file(path).finished) == (int(chosen), True)


def test_run_with_failed_traces_only_can_be_resumed(tmp_path: Path) -> None:
    path = record(tmp_path / "run.jsonl", refusing("r0"), max_retries=1)
    report = check(path)
    assert (report.finished, report.traces, report.given_up) == (False, 0, len(read_lines_of(path, "trace_complete")))
    record(path, refusing("r0"), max_retries=0)
    assert check(path).sittings == 2
    report = check(record(path))
    assert (report.finished, report.given_up, report.sittings) == (True, 0, 3)


def test_failed_trace_that_a_prompt_left_out_is_not_retried(tmp_path: Path) -> None:
    path = record(tmp_path / "run.jsonl", refusing("r0-02"), final_candidates=0)
    lines = path.read_bytes().split(b"\n")[:-1]
    first_child = next(i for i, line in enumerate(read_lines(path)) if line["event"] == "aggregation_prompt")
    for size in range(first_child - 2, first_child + 3):
        path.write_bytes(b"\n".join(lines[:size]) + b"\n")
        assert check(record(path, final_candidates=0)).given_up == int(size > first_child)


def read_lines_of(path: Path, event: str) -> list[dict[str, Any]]:
    return [line for line in read_lines(path) if line["event"] == event]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("MRSA_SEEDS", "4"))))  # MRSA_SEEDS seeds
@pytest.mark.parametrize("kind", KINDS)
def test_failing_run_resumed_after_a_cut_at_any_line_is_verified(kind: str, seed: int, tmp_path: Path) -> None:
    backend = FakeBackend(wordy, fail=failing(seed, 0.2))
    changes: dict[str, Any] = {**KINDS[kind], "max_retries": 1}
    path = record(tmp_path / "run.jsonl", backend, **changes)
    cuts(path, 1, backend=FakeBackend(wordy, fail=failing(seed + 100, 0.2)), **changes)


@sizes("step", 4, 1)
def test_unfinished_run_is_consistent_so_far(step: int, trail: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, trail)
    for size in places(path, step)[1:]:
        write_lines(path, trail[:size])
        report = check(path)
        assert not report.finished
        assert report.verdict.startswith("unfinished, consistent so far; texts not checked")
        assert report.lines == size
    with path.open("a") as file:
        file.write('{"event": "run_e')
    assert verify_file(path).torn_bytes == 16


class AnswerTagTokenizer(CharacterTokenizer):
    """The tokenizer of a model whose template encloses answers, as Hunyuan's does."""

    def find_marks(self, named: Sequence[str] | None = None) -> ThinkingMarks | None:
        return find_marks("<think>\n</think>\n<answer>\n</answer>", self.reserved.get, named)


def test_a_run_of_a_model_that_encloses_its_answers_is_verified(tmp_path: Path) -> None:
    engine = FakeEngine(
        lambda request, draws: f"hm</think>\n<answer>\n\\boxed{{{draws.randrange(3)}}}\n</answer>",
        tokenizer=AnswerTagTokenizer(),
    )
    report = check(record(tmp_path / "run.jsonl", engine), AnswerTagTokenizer())
    assert report.finished


def as_version_1(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines as a version without levels and verdicts wrote them."""
    added = ("answer_rules", "levels", "verdicts", "thinking_marks", "frame_texts", "kv_bits")
    lines = [{k: v for k, v in line.items() if k not in added} for line in lines]
    config = {k: v for k, v in lines[0]["config"].items() if k not in ("thinking_marks", "tail_order", "kv_bits")}
    return [{**lines[0], "config": config}, *lines[1:]]


def merged(trail: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines up to a selection that puts all candidates into one class."""
    selection = next(line for line in trail if line["event"] == "selection")
    assert len(selection["classes"]) > 1
    one = {**selection, "classes": [selection["candidate_trace_ids"]], "tally": [3], "tie": False}
    one["chosen_trace_id"], one["answer"] = selection["candidate_trace_ids"][0], selection["answers"][0]
    return [one if line is selection else line for line in trail if line["event"] != "final"][:-1]


def test_classes_that_the_rules_contradict_are_rejected_without_an_equivalence(
    trail: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, merged(trail))
    with pytest.raises(VerificationError, match=r"\(selection\): the answers fall into the classes"):
        verify_file(path)


def test_equal_values_of_an_old_file_are_assumed_without_an_equivalence(
    trail: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, as_version_1(trail))
    assert verify_file(path).assumed == verify_file(path, equivalent=same).assumed == ()
    write_lines(path, as_version_1(merged(trail)))
    assert verify_file(path).assumed == ("that answers which differ as texts have equal values",)
    with pytest.raises(VerificationError, match=r"\(selection\): the answers fall into the classes"):
        verify_file(path, equivalent=same)


def halves(first: str, second: str) -> bool:
    """Whether two answers are equal, for answers that are x/2, 0.5x or y."""
    return (first == "y") == (second == "y")


@pytest.fixture
def term_trail(tmp_path: Path) -> list[dict[str, Any]]:
    """Lines of a run whose answers are terms, which only computer algebra compares."""
    answers = {"r2-00": "x/2", "r2-01": "y", "r2-02": "0.5x"}
    engine = FakeBackend(lambda request, _: boxed(answers.get(request.trace_id, "x")))
    path, config = tmp_path / "terms.jsonl", SMALL.replace(final_candidates=0, answer_selection="majority")
    MarkovianRSAOrchestrator(engine, equivalent=halves).run(QUESTION, config, audit_path=path)
    return read_lines(path)


def test_verdicts_that_decide_are_recorded_and_checked(term_trail: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, term_trail)
    (selection,) = (line for line in term_trail if line["event"] == "selection")
    assert selection["levels"] == ["boxed"] * 3
    assert ["r2-00", "r2-02", "same"] in selection["verdicts"]
    assert ["r2-00", "r2-01", "different"] in selection["verdicts"]
    assert verify_file(path, equivalent=halves).assumed == ()
    assert len(verify_file(path).assumed) == 1


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        ([["r2-00", "r2-01", "different"]], "classes"),
        ([["r2-00", "r2-01", "same"], ["r2-00", "r2-02", "same"]], "classes"),
        ([["r2-00", "r2-02", "perhaps"]], "not two traces and a verdict"),
        ([["r2-00", "r9-99", "same"]], "does not name two traces"),
        ([["r2-00", "r2-01", "different"], ["r2-00", "r2-02", "same"], ["r2-01", "r2-02", "different"]], "other pairs"),
        ([["r2-00", "r2-02", "same"], ["r2-00", "r2-02", "same"]], "other pairs"),
    ],
)
def test_forged_verdicts_are_rejected(
    verdicts: list[list[str]], reason: str, term_trail: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    forged = [{**line, "verdicts": verdicts} if line["event"] == "selection" else line for line in term_trail]
    write_lines(path, forged)
    with pytest.raises(VerificationError, match=reason):
        verify_file(path)


def test_a_verdict_that_the_equivalence_contradicts_is_rejected(
    term_trail: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, term_trail)
    with pytest.raises(VerificationError, match="are different"):
        verify_file(path, equivalent=lambda first, second: first == second)


def test_a_missing_verdict_that_would_decide_is_not_called_verified(
    term_trail: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    lines = [{**line, "verdicts": []} if line["event"] == "selection" else line for line in term_trail]
    selection = next(line for line in lines if line["event"] == "selection")
    selection |= {"classes": [["r2-00"], ["r2-01"], ["r2-02"]], "tally": [1, 1, 1], "tie": True}
    write_lines(path, [line for line in lines if line["event"] not in ("final", "run_end")])
    report = verify_file(path, equivalent=halves, codec=CharacterTokenizer())
    assert (report.texts_checked, report.is_complete) == (True, False)
    assert "not checked verdicts" in report.verdict


@pytest.mark.parametrize("levels", [[], ["boxed"], ["weak", "boxed", "boxed"]])
def test_levels_that_do_not_follow_are_rejected(
    levels: list[str], term_trail: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, [{**line, "levels": levels} if line["event"] == "selection" else line for line in term_trail])
    with pytest.raises(VerificationError, match=r"\(selection\)"):
        verify_file(path)


def test_file_without_a_run_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(AuditError, match="cannot be read"):
        verify_file(path)
    path.write_text("")
    with pytest.raises(VerificationError, match="holds no events"):
        verify_file(path)
    path.write_text("notes\nmore notes\n")
    with pytest.raises(VerificationError, match="line 1"):
        verify_file(path)


def test_summary_source_must_match_the_setting(tmp_path: Path) -> None:
    path = record(tmp_path / "run.jsonl", carry="summary", summary_prompt="Short!")
    lines = read_lines(path)
    lines[0]["config"]["summary_prompt"] = "Long!"
    write_lines(path, lines)
    with pytest.raises(VerificationError, match="summary_source does not match"):
        verify_file(path)
