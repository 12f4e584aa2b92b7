"""Unfinished thinking of final traces is closed in time, and the run stays resumable and verifiable."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import RunState, read_events
from markovian_rsa_mlx.audit.events import (
    RunEndEvent,
    RunSetupEvent,
    ThinkingClosedEvent,
    TraceCheckpointEvent,
    TraceCompleteEvent,
)
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.errors import ResumeError, VerificationError
from markovian_rsa_mlx.marks import ThinkingMarks
from tests.support.audit_files import read_lines, write_lines
from tests.support.fakes import THINK_END, CharacterTokenizer, FakeEngine, boxed
from tests.support.runs import cut, line_ends, of, of_file, run, small
from tests.support.sizes import sizes


class LineBreaking(CharacterTokenizer):
    """A tokenizer whose template writes line breaks around the mark: several ids close the thinking."""

    def find_marks(self, named: Sequence[str] | None = None) -> ThinkingMarks | None:
        marks = super().find_marks(named)
        return marks and replace(marks, closing="\n</think>\n\n")


TOKENIZER = LineBreaking()
CLOSING = TOKENIZER.encode("\n</think>\n\n")
CONFIG = small(population=3, rounds=1, final_candidates=0, final_tokens=1_500, answer_tokens=100)


def thinker(request: GenerationRequest, rng: random.Random) -> str:
    """Every second final trace thinks for longer than it may; all would answer."""
    return boxed(rng.randrange(100), "hm " * (900 if int(request.trace_id[-2:]) % 2 == 0 else 9))


def engine(**values: Any) -> FakeEngine:
    return FakeEngine(thinker, **{"tokenizer": TOKENIZER, **values})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    run(engine(), CONFIG, path)
    return path


def completed(path: Path) -> dict[str, TraceCompleteEvent]:
    return {event.trace_id: event for event in of_file(path, TraceCompleteEvent)}


def test_open_thinking_of_final_traces_is_closed_and_answered(whole: Path) -> None:
    (setup,) = of_file(whole, RunSetupEvent)
    assert setup.closing_token_ids == CLOSING
    closed = of_file(whole, ThinkingClosedEvent)
    assert [(event.trace_id, event.position, event.token_ids) for event in closed] == [
        ("r1-00", 1_400, CLOSING),
        ("r1-02", 1_400, CLOSING),
    ]
    for trace_id, trace in completed(whole).items():
        ids = trace.token_ids
        is_closed = trace_id in ("r1-00", "r1-02")
        assert (ids[1_400 : 1_400 + len(CLOSING)] == CLOSING) == is_closed
        assert trace.generated_tokens == len(ids) - len(CLOSING) * is_closed
        assert trace.finish_reason == "max_tokens" if trace_id in ("r0-00", "r0-02") else "eos"
    state = RunState(read_events(whole))
    assert all(state.answer(state.trace(f"r1-0{index}")) for index in range(3))
    (end,) = of_file(whole, RunEndEvent)
    assert end.total_generated_tokens == sum(t.generated_tokens for t in completed(whole).values())
    assert verify_file(whole).assumed == ()
    verify_file(whole, codec=TOKENIZER)


def test_the_event_precedes_the_checkpoint_that_holds_its_ids(whole: Path) -> None:
    known: list[int] = []
    positions = []
    for event in read_events(whole):
        if isinstance(event, TraceCheckpointEvent) and event.trace_id == "r1-00":
            known[event.position :] = event.token_ids
        elif isinstance(event, ThinkingClosedEvent) and event.trace_id == "r1-00":
            positions.append(len(known))
    assert positions == [1_400]


@pytest.mark.parametrize(
    ("changes", "own_engine"),
    [
        ({"answer_tokens": 0}, engine()),
        ({"enable_thinking": False}, engine()),
        ({"final_tokens": 8, "answer_tokens": None}, engine()),  # the closing ids leave no token
        ({}, engine(tokenizer=LineBreaking(thinking=False))),
        ({}, engine(closes_thinking=None)),
    ],
)
def test_nothing_is_closed_where_it_does_not_apply(
    changes: dict[str, Any], own_engine: FakeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    result = run(own_engine, CONFIG.replace(**changes), path)
    assert not of_file(path, ThinkingClosedEvent)
    assert result.warnings == []
    assert all(event.generated_tokens == len(event.token_ids) for event in completed(path).values())
    verify_file(path)


def test_an_engine_that_cannot_close_thinking_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    result = run(engine(closes_thinking=False), CONFIG, path)
    (warning,) = result.warnings
    assert "answer_tokens" in warning
    assert not of_file(path, ThinkingClosedEvent)
    verify_file(path)


@sizes("step", 20, 5)
def test_a_run_cut_anywhere_resumes_to_the_same_tokens(step: int, whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    ends = line_ends(whole)
    places = [i for i, end in enumerate(ends) if b"thinking_closed" in content[:end].splitlines()[-1]]
    for place in [
        *range(2, len(ends), step),
        *places,
        *(place + 1 for place in places),
        *(place - 1 for place in places),
    ]:
        path = cut(whole, ends[place], tmp_path / "cut.jsonl")
        run(engine(), CONFIG, path)
        again, before = completed(path), completed(whole)
        assert {k: (e.token_ids, e.generated_tokens) for k, e in again.items()} == {
            k: (e.token_ids, e.generated_tokens) for k, e in before.items()
        }
        assert len(of_file(path, ThinkingClosedEvent)) == 2
        assert verify_file(path).generated_tokens == verify_file(whole).generated_tokens


def test_forced_ids_use_no_token_budget(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(engine(), CONFIG, path)
    total = of_file(path, RunEndEvent)[0].total_generated_tokens
    assert run(engine(), CONFIG.replace(token_budget=total + 1)).generated_tokens == total


def test_another_value_is_not_resumed_but_an_older_file_is(whole: Path, tmp_path: Path) -> None:
    path = cut(whole, line_ends(whole)[8], tmp_path / "cut.jsonl")
    with pytest.raises(ResumeError, match="answer_tokens"):
        run(engine(), CONFIG.replace(answer_tokens=None), path)
    old = tmp_path / "old.jsonl"
    run(engine(), CONFIG.replace(answer_tokens=0), old)
    lines = read_lines(old)
    for name in ("answer_tokens", "thinking_marks", "tail_order", "kv_bits"):
        del lines[0]["config"][name]
    for name in ("closing_token_ids", "answer_rules", "thinking_marks", "frame_texts", "kv_bits"):
        del lines[1][name]
    write_lines(old, lines[:8])
    run(engine(), CONFIG.replace(answer_tokens=None), old)  # the command that made it
    assert not of_file(old, ThinkingClosedEvent)
    verify_file(old)


def test_an_engine_that_cannot_close_thinking_does_not_resume_the_run(whole: Path, tmp_path: Path) -> None:
    path = cut(whole, line_ends(whole)[8], tmp_path / "cut.jsonl")
    before = path.read_bytes()
    for closes_thinking in (False, None):
        with pytest.raises(ResumeError, match="answer_tokens"):
            run(engine(closes_thinking=closes_thinking), CONFIG, path)
    assert path.read_bytes() == before


Lines = list[dict[str, Any]]


def index_of(lines: Lines, event: str, trace_id: str) -> int:
    return next(i for i, line in enumerate(lines) if (line["event"], line.get("trace_id")) == (event, trace_id))


def rewrite(lines: Lines, trace_id: str, ids: list[int], forced: int) -> None:
    """Give a trace other ids, with its text, counts and checkpoints adjusted."""
    complete = lines[index_of(lines, "trace_complete", trace_id)]
    drawn = len(ids) - forced
    lines[-1]["total_generated_tokens"] += drawn - complete["generated_tokens"]
    complete |= {"token_ids": ids, "generated_tokens": drawn, "text": TOKENIZER.decode(ids)}
    for line in lines:
        if line["event"] == "trace_checkpoint" and line["trace_id"] == trace_id:
            line["token_ids"] = ids[line["position"] : line["position"] + len(line["token_ids"])]


def moved(lines: Lines) -> None:
    """The closing ids come one id earlier, as does the event."""
    event = lines[index_of(lines, "thinking_closed", "r1-00")]
    ids = lines[index_of(lines, "trace_complete", "r1-00")]["token_ids"]
    event["position"] -= 1
    rewrite(lines, "r1-00", [*ids[:1_399], *CLOSING, ids[1_399], *ids[1_400 + len(CLOSING) :]], len(CLOSING))


def changed(lines: Lines) -> None:
    """Another line break everywhere but in the setup."""
    event = lines[index_of(lines, "thinking_closed", "r1-00")]
    other = [*CLOSING[:-1], *TOKENIZER.encode(" ")]
    event["token_ids"] = other
    ids = lines[index_of(lines, "trace_complete", "r1-00")]["token_ids"]
    rewrite(lines, "r1-00", [*ids[:1_400], *other, *ids[1_400 + len(other) :]], len(other))


def removed(lines: Lines) -> None:
    """The ids pass for the model's own."""
    del lines[index_of(lines, "thinking_closed", "r1-00")]
    rewrite(lines, "r1-00", lines[index_of(lines, "trace_complete", "r1-00")]["token_ids"], 0)


def removed_with_its_setup(lines: Lines) -> None:
    lines[1]["closing_token_ids"], lines[1]["engine"] = [], "mlx-lm"
    for trace_id in ("r1-00", "r1-02"):
        del lines[index_of(lines, "thinking_closed", trace_id)]
        rewrite(lines, trace_id, lines[index_of(lines, "trace_complete", trace_id)]["token_ids"], 0)


def added(lines: Lines) -> None:
    """An event closes the thinking of a trace that ended by itself."""
    index = index_of(lines, "trace_complete", "r1-01")
    ids = lines[index]["token_ids"]
    event = copy.deepcopy(lines[index_of(lines, "thinking_closed", "r1-00")]) | {"trace_id": "r1-01"}
    event["position"] = ids.index(THINK_END)
    lines.insert(index, event)
    rewrite(lines, "r1-01", ids, len(CLOSING))


def added_to_an_early_round(lines: Lines) -> None:
    event = copy.deepcopy(lines[index_of(lines, "thinking_closed", "r1-00")])
    lines.insert(index_of(lines, "trace_complete", "r0-00"), event | {"trace_id": "r0-00", "round": 0})


def doubled(lines: Lines) -> None:
    index = index_of(lines, "thinking_closed", "r1-00")
    lines.insert(index, copy.deepcopy(lines[index]))


def counted(lines: Lines) -> None:
    lines[index_of(lines, "trace_complete", "r1-00")]["generated_tokens"] += len(CLOSING)
    lines[-1]["total_generated_tokens"] += len(CLOSING)


def cut_out_of_the_trace(lines: Lines) -> None:
    """The event stays, and its ids are gone."""
    ids = lines[index_of(lines, "trace_complete", "r1-00")]["token_ids"]
    rewrite(lines, "r1-00", [*ids[:1_400], *ids[1_400 + len(CLOSING) :]], len(CLOSING))


def after_its_ids(lines: Lines) -> None:
    index = index_of(lines, "thinking_closed", "r1-00")
    event = lines.pop(index)
    lines.insert(index_of(lines, "trace_complete", "r1-00"), event)
    ids = lines[index_of(lines, "trace_complete", "r1-00")]["token_ids"]
    checkpoint = copy.deepcopy(lines[index_of(lines, "trace_checkpoint", "r1-00")])
    lines.insert(index, checkpoint | {"position": 1_400, "token_ids": ids[1_400:1_410]})


@pytest.mark.parametrize(
    "tamper",
    [
        moved,
        changed,
        removed,
        removed_with_its_setup,
        added,
        added_to_an_early_round,
        doubled,
        counted,
        cut_out_of_the_trace,
        after_its_ids,
    ],
)
def test_forced_ids_are_accepted_where_the_event_puts_them_and_nowhere_else(
    tamper: Callable[[Lines], None], whole: Path, tmp_path: Path
) -> None:
    lines = read_lines(whole)
    tamper(lines)
    write_lines(tmp_path / "tampered.jsonl", lines)
    for codec in (None, TOKENIZER):
        with pytest.raises(VerificationError):
            verify_file(tmp_path / "tampered.jsonl", codec=codec)


def test_closing_ids_of_the_setup_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    """Without a tokenizer a file with other line breaks everywhere passes for a sound one."""
    path = tmp_path / "run.jsonl"
    run(engine(), CONFIG, path)
    lines = read_lines(path)
    lines[1]["closing_token_ids"] = CLOSING[1:]
    write_lines(path, lines[:2])
    verify_file(path)
    with pytest.raises(VerificationError, match="closing ids"):
        verify_file(path, codec=TOKENIZER)


def test_events_of_a_run_count_drawn_tokens_only(whole: Path) -> None:
    """A live display counts ids as they arrive; the file alone gives the same."""
    live = RunState()
    result = run(
        engine(),
        CONFIG,
        on_event=live.apply,
        on_progress=lambda trace_id, ids: live.add_tokens(trace_id, len(ids)),
    )
    unfinished = RunState()
    for event in result.events:
        unfinished.apply(event)
        if isinstance(event, ThinkingClosedEvent):
            assert unfinished.trace(event.trace_id).tokens == 1_400
        if isinstance(event, TraceCompleteEvent):
            break
    assert (
        live.total_tokens
        == result.generated_tokens
        == sum(event.generated_tokens for event in of(result.events, TraceCompleteEvent))
    )
