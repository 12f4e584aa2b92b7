"""A changed file is rejected at the right line, also if other lines were changed to match."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.errors import VerificationError
from markovian_rsa_mlx.method.lineage import TraceKey, trace_seed
from markovian_rsa_mlx.models.routing_report import summary
from tests.support.audit_files import failing, read_lines, record, same, wordy, write_lines
from tests.support.fakes import EOS, CharacterTokenizer, FakeBackend
from tests.support.sizes import sizes

Lines = list[dict[str, Any]]
#: Changes the lines and returns the index of the first one that no longer follows.
Tamper = Callable[[Lines], int]
CODEC = CharacterTokenizer()


def find(lines: Lines, event: str, trace_id: str | None = None, nth: int = 0) -> int:
    found = [i for i, line in enumerate(lines) if line["event"] == event and trace_id in (None, line.get("trace_id"))]
    return found[nth]


def edit(event: str, trace_id: str | None = None, /, **values: Any) -> Tamper:
    """Change fields of one line; a function gets the old value."""

    def tamper(lines: Lines) -> int:
        index = find(lines, event, trace_id)
        for name, value in values.items():
            lines[index][name] = value(lines[index][name]) if callable(value) else value
        return index

    return tamper


def remove(event: str, trace_id: str | None = None, missed_by: tuple[str, str | None] = ("", None)) -> Tamper:
    """Take a line away; `missed_by` is the line that needs it."""

    def tamper(lines: Lines) -> int:
        del lines[find(lines, event, trace_id)]
        return find(lines, *missed_by)

    return tamper


def double(event: str, trace_id: str | None = None) -> Tamper:
    def tamper(lines: Lines) -> int:
        index = find(lines, event, trace_id)
        lines.insert(index + 1, copy.deepcopy(lines[index]))
        return index + 1

    return tamper


def counts(steps: int, drafted: int, accepted: int) -> dict[str, int]:
    return {"steps": steps, "drafted": drafted, "accepted": accepted}


def edit_end(trace_id: str, **values: int) -> Tamper:
    """Change fields of the line with which a trace leaves the engine."""

    def tamper(lines: Lines) -> int:
        index = find(lines, "trace_clock", trace_id, nth=1)
        lines[index].update(values)
        return index

    return tamper


def steps_of_more_ids(lines: Lines) -> int:
    complete = find(lines, "trace_complete", "r0-00")
    edit_end("r0-00", **counts(len(lines[complete]["token_ids"]), 4, 1))(lines)
    return complete


def clock_back(lines: Lines) -> int:
    index = find(lines, "trace_clock", "r2-00")
    lines[index]["elapsed_s"] = 0.0
    return index


def row_left_twice(lines: Lines) -> int:
    index = find(lines, "trace_clock", "r0-00", nth=1)
    lines.insert(index + 1, copy.deepcopy(lines[index]))
    return index + 1


def add_retry(lines: Lines) -> int:
    index = find(lines, "trace_complete", "r0-02")
    key, run_id, seed = TraceKey(0, 2), lines[0]["run_id"], lines[1]["seed"]
    retry = {"event": "trace_retry", "run_id": run_id, "round": 0, "trace_id": "r0-02", "purpose": "trace"}
    lines.insert(index, {**retry, "attempt": 2, "seed": trace_seed(seed, key, 2), "message": "why"})
    return index


def parents_swapped(lines: Lines) -> int:
    """The prompt is even rebuilt for the other order."""
    index = find(lines, "aggregation_prompt", "r1-00")
    prompt = lines[index]
    prompt["selected_tail_trace_ids"].reverse()
    start = lines[find(lines, "generation_start", "r1-00")]
    start["parent_trace_ids"].reverse()
    first, second = (
        lines[find(lines, "tail_extracted", t)]["tail_text"] for t in reversed(prompt["selected_tail_trace_ids"])
    )
    prompt["prompt_text"] = prompt["prompt_text"].replace(first, "\x00").replace(second, first).replace("\x00", second)
    return index


def tail_of_other_ids(lines: Lines) -> int:
    """A tail one id earlier, its text and its children's prompts adjusted: only the ids show it."""
    index = find(lines, "tail_extracted", "r0-00")
    complete = lines[find(lines, "trace_complete", "r0-00")]
    text = complete["text"].split("</think>")[0]
    lines[index]["tail_text"] = text[-31:-1]
    lines[index]["tail_token_ids"] = CODEC.encode(text[-31:-1])
    return index


def shorter_tail(lines: Lines) -> int:
    index = find(lines, "tail_extracted", "r0-00")
    line = lines[index]
    line["tail_token_ids"], line["tail_text"] = line["tail_token_ids"][2:], line["tail_text"][2:]
    line["tail_tokens"] -= 2
    return index


def longer_trace(lines: Lines) -> int:
    """A final trace that was cut by nothing, one token longer than it may be, counts and totals adjusted."""
    index = find(lines, "trace_complete", "r2-00")
    line = lines[index]
    extra = 111 - len(line["token_ids"])
    line["token_ids"] = [*CODEC.encode("x" * extra), *line["token_ids"]]
    line["text"] = "x" * extra + line["text"]
    line["generated_tokens"] += extra
    lines[-1]["total_generated_tokens"] += extra
    for i, other in reversed(list(enumerate(lines))):
        if other["event"] == "trace_checkpoint" and other["trace_id"] == "r2-00":
            del lines[i]
    return find(lines, "trace_complete", "r2-00")


def cut_without_reason(lines: Lines) -> int:
    """The EOS taken off, counts and totals adjusted."""
    index = find(lines, "trace_complete", "r2-00")
    line = lines[index]
    line["token_ids"], line["finish_reason"] = line["token_ids"][:-1], "max_tokens"
    line["generated_tokens"] -= 1
    lines[-1]["total_generated_tokens"] -= 1
    return index


def another_answer(lines: Lines) -> int:
    """The answer changed everywhere but in the trace's ids. Without a tokenizer the text counts."""
    index = find(lines, "selection")
    lines[index]["answers"][1] = "41"
    return index


def vote_for_the_loser(lines: Lines) -> int:
    selection, final = lines[find(lines, "selection")], lines[find(lines, "final")]
    selection["chosen_trace_id"], selection["answer"] = "r2-00", selection["answers"][0]
    final["final_trace_id"] = "r2-00"
    final["final_text"] = f"\\boxed{{{selection['answer']}}}"
    return find(lines, "selection")


def a_candidate_left_out(lines: Lines) -> int:
    selection = lines[find(lines, "selection")]
    selection["candidate_trace_ids"].pop()
    selection["answers"].pop()
    return find(lines, "selection")


def token_changed_in_a_prompt(lines: Lines) -> int:
    index = find(lines, "aggregation_prompt", "r1-01")
    ids = lines[index]["prompt_token_ids"]
    ids[len(ids) // 2] += 1
    return index


def problem_changed(lines: Lines) -> int:
    """Another question everywhere but in the segments' source of truth, the template's rendering."""
    lines[0]["prompt"] = lines[1]["messages"][-1]["content"] = "Another question?"
    lines[1]["prompt_text"] = lines[1]["chat_prefix"] + "Another question?" + lines[1]["chat_suffix"]
    return 1


def needless_trace(lines: Lines) -> int:
    """A whole extra trace that no final candidate descends from."""
    known = {line["trace_id"] for line in lines if line["event"] == "trace_complete" and line["round"] == 0}
    (needless,) = {"r0-00", "r0-01", "r0-02"} - known
    index = find(lines, "generation_start", "r0-02")
    seed = trace_seed(lines[1]["seed"], TraceKey.parse(needless))
    lines.insert(index, {**lines[index], "trace_id": needless, "seed": seed})
    return index


def tail_before_its_trace(lines: Lines) -> int:
    tail = lines.pop(find(lines, "tail_extracted", "r0-00"))
    index = find(lines, "trace_complete", "r0-00")
    lines.insert(index, tail)
    return index


def child_before_its_parent(lines: Lines) -> int:
    prompt = lines.pop(find(lines, "aggregation_prompt", "r1-00"))
    index = find(lines, "tail_extracted", prompt["selected_tail_trace_ids"][-1])
    first = min(index, find(lines, "tail_extracted", prompt["selected_tail_trace_ids"][0]))
    lines.insert(first, prompt)
    return first


def failed_without_a_retry(lines: Lines) -> int:
    """A trace is recorded as failed although it was not tried again."""
    index = find(lines, "trace_complete", "r2-02")
    line = lines[index]
    lines[index] = {
        **line,
        "text": "",
        "token_ids": [],
        "generated_tokens": 0,
        "finish_reason": "error",
        "elapsed_s": 0.0,
    }
    lines[-1]["total_generated_tokens"] -= line["generated_tokens"]
    return index


def eos_in_the_middle(lines: Lines) -> int:
    index = find(lines, "trace_complete", "r2-00")
    lines[index]["token_ids"].insert(3, EOS)
    lines[index]["generated_tokens"] += 1
    lines[-1]["total_generated_tokens"] += 1
    for i, other in reversed(list(enumerate(lines))):
        if other["event"] == "trace_checkpoint" and other["trace_id"] == "r2-00":
            del lines[i]
    return find(lines, "trace_complete", "r2-00")


def fields_in_another_order(lines: Lines) -> int:
    lines[-1] = dict(reversed(lines[-1].items()))
    return len(lines) - 1


def config_without_a_setting(lines: Lines) -> int:
    del lines[0]["config"]["min_p"]
    return 0


def another_template(lines: Lines) -> int:
    lines[1]["template_source"] = lines[1]["template_source"].replace("Check", "Do not check")
    return 1


def a_segment_of_its_own(lines: Lines) -> int:
    lines[1]["segments"][1][0] += " (the answer is 3)"
    return 1


def seed_of_the_run(lines: Lines) -> int:
    """Another run seed in settings and setup: the traces' seeds no longer follow."""
    lines[0]["config"]["seed"] = lines[1]["seed"] = 14
    return next(i for i, line in enumerate(lines) if line["event"] in ("generation_start", "aggregation_prompt"))


def another_checkpoint(lines: Lines) -> int:
    lines[find(lines, "trace_checkpoint", "r0-00")]["token_ids"][-1] += 1
    return find(lines, "trace_complete", "r0-00")


CASES: dict[str, tuple[Tamper, str]] = {
    "no run_start": (remove("run_start", missed_by=("run_setup", None)), "run_start is the first line"),
    "run_start twice": (double("run_start"), "run_start is the first line"),
    "no run_setup": (remove("run_setup", missed_by=("generation_start", None)), "run_setup is the second line"),
    "another run's line": (edit("tail_extracted", "r0-02", run_id="other"), "another run_id"),
    "a line after the end": (double("run_end"), "the run has ended before"),
    "created_at is not a time": (edit("run_start", created_at="yesterday"), "not an ISO 8601 time"),
    "created_at is not in UTC": (edit("run_start", created_at="2026-01-01T00:00:00+02:00"), "not in UTC"),
    "fields in another order": (fields_in_another_order, "its fields are"),
    "a field more": (lambda lines: lines[-1].update(x=1) or len(lines) - 1, "its fields are"),
    "a setting less": (config_without_a_setting, "config has other settings"),
    "an unknown event": (edit("round_complete", event="round_done"), "has no such event"),
    "a negative time": (edit("trace_complete", "r0-00", elapsed_s=-1.0), "elapsed_s is -1.0"),
    "an infinite time": (edit("trace_complete", "r0-00", elapsed_s=1e999), "elapsed_s is inf|not a JSON"),
    "another lineage version": (edit("run_setup", lineage_version=2), "lineage version 2"),
    "another run seed": (seed_of_the_run, "by the lineage"),
    "a seed that is not the setting's": (edit("run_setup", seed=99), "the seed is not the setting's"),
    "another question": (problem_changed, "segments for 1 attempts"),
    "another prompt": (lambda lines: edit("run_start", prompt="Who?")(lines) + 1, "not the run's prompt"),
    "another round-0 text": (edit("run_setup", prompt_text=lambda t: t.replace("one", "two")), "not the chat frame"),
    "another template": (another_template, "not the built-in zaya_v1"),
    "another segment": (a_segment_of_its_own, "not what the template gives"),
    "a template that cannot be": (edit("run_setup", template_source="{% if %}"), "not valid Jinja2"),
    "segments' ids missing": (edit("run_setup", segment_token_ids=[]), "segment_token_ids are not for"),
    "another trace seed": (edit("generation_start", "r1-00", seed=lambda s: s ^ 1), "by the lineage"),
    "another budget": (edit("generation_start", "r1-00", max_tokens=65), "the budget of round 1 is 64"),
    "another prompt count": (edit("generation_start", "r1-00", prompt_token_count=lambda n: n - 1), "the prompt has"),
    "another round": (edit("generation_start", "r1-00", round=2), "not a trace of round 2"),
    "not a trace id": (edit("generation_start", "r1-00", trace_id="r1-0"), "not a trace id"),
    "other parents at the start": (edit("generation_start", "r1-00", parent_trace_ids=["r0-00"]), "the prompt shows"),
    "a needless trace": (needless_trace, "not an ancestor of a final candidate"),
    "begun twice": (double("generation_start", "r0-02"), "must follow its start"),
    "parents swapped": (parents_swapped, "the lineage and the failed traces leave"),
    "a parent left out": (edit("aggregation_prompt", "r1-00", selected_tail_trace_ids=lambda p: p[:1]), "leave"),
    "a word in a prompt": (edit("aggregation_prompt", "r1-00", prompt_text=str.upper), "not the template"),
    "a token in a prompt": (token_changed_in_a_prompt, "prompt_token_ids are not"),
    "prompted twice": (double("aggregation_prompt", "r1-00"), "has its prompt already"),
    "no prompt": (remove("aggregation_prompt", "r1-00", ("generation_start", "r1-00")), "has no prompt yet"),
    "no start": (remove("generation_start", "r0-00", ("trace_clock", "r0-00")), "does not start the generation"),
    "a clock that runs backwards": (clock_back, "accounted for"),
    "a row got twice": (double("trace_clock", "r0-00"), "is in the engine already"),
    "a row left twice": (row_left_twice, "is not in the engine"),
    "steps before the start": (edit("trace_clock", "r0-00", **counts(0, 0, 0)), "has made no steps"),
    "more kept than guessed": (edit_end("r0-00", **counts(5, 1, 2)), "cannot have accepted"),
    "guesses without steps": (edit_end("r0-00", drafted=1, accepted=1), "cannot have accepted"),
    "too many steps": (steps_of_more_ids, "do not give"),
    "no completion": (remove("trace_complete", "r0-00", ("tail_extracted", "r0-00")), "is not finished"),
    "no tail": (remove("tail_extracted", "r0-00", ("round_complete", None)), "is not settled yet"),
    "a child before its parent": (child_before_its_parent, "is not settled yet"),
    "a tail before its trace": (tail_before_its_trace, "is not finished"),
    "completed twice": (double("trace_complete", "r0-00"), "is complete already"),
    "another tail": (tail_of_other_ids, "not a run of the trace's last ids|the text is not the end"),
    "a shorter tail": (shorter_tail, "the text is not the end of the trace's text"),
    "another tail count": (edit("tail_extracted", "r0-00", tail_tokens=7), "tail_tokens is not"),
    "another tail text": (edit("tail_extracted", "r0-00", tail_text=lambda t: t[:-1] + "9"), "the text is not the end"),
    "a tail twice": (double("tail_extracted", "r0-00"), "has its tail already"),
    "another token count": (edit("trace_complete", "r0-00", generated_tokens=3), "generated_tokens is 3"),
    "another finish reason": (edit("trace_complete", "r2-00", finish_reason="max_tokens"), "is max_tokens"),
    "cut without reason": (cut_without_reason, "although the budget is 110"),
    "over the budget": (longer_trace, "more than the budget, 110"),
    "an EOS in the middle": (eos_in_the_middle, "an EOS id before the end"),
    "failed without a retry": (failed_without_a_retry, "failed after 0 of 2 retries"),
    "the marker out of the text": (edit("trace_complete", "r2-00", text="\\boxed{1}"), "the text does not"),
    "a checkpoint's ids": (another_checkpoint, "do not continue the checkpoints"),
    "a checkpoint elsewhere": (edit("trace_checkpoint", "r0-00", position=5), "the checkpoints before end at 0"),
    "a checkpoint of another attempt": (edit("trace_checkpoint", "r0-00", attempt=1), "the attempt is 0"),
    "an attempt skipped": (add_retry, "the next attempt is 1"),
    "a round that lists less": (edit("round_complete", trace_ids=["r0-00"]), "its needed traces are"),
    "a round twice": (double("round_complete"), "is complete already"),
    "no round_complete": (remove("round_complete", missed_by=("selection", None)), "is not complete"),
    "an unknown round": (edit("round_complete", round=3), "no round 3"),
    "another answer": (another_answer, "the answer of r2-01 is"),
    "another tally": (edit("selection", tally=[2, 1]), "the tally is"),
    "other classes": (edit("selection", classes=lambda c: [c[0] + c[1]], tally=[3]), "fall into the classes|fall into"),
    "a false tie": (edit("selection", tie=True), "tie should be False"),
    "the loser chosen": (vote_for_the_loser, "the choice is r2-01"),
    "a candidate left out": (a_candidate_left_out, "the candidates are"),
    "another rule": (edit("selection", answer_selection="single"), "the answers is majority"),
    "another baseline vote": (edit("selection", round_zero=lambda z: {**z, "traces": 3}), "2 traces of round 0"),
    "no selection": (remove("selection", missed_by=("final", None)), "final without selection"),
    "another final text": (edit("final", final_text=lambda t: t[1:]), "not the part of r2-01 after the thinking"),
    "another final trace": (edit("final", final_trace_id="r2-00"), "the chosen trace is r2-01"),
    "final twice": (double("final"), "a second final"),
    "no final": (remove("final", missed_by=("run_end", None)), "run_end without final"),
    "another total": (edit("run_end", total_generated_tokens=lambda n: n - 1), "tokens were generated, not"),
    "too short a time": (edit("run_end", elapsed_s=0.0), "elapsed_s is less"),
}  # fmt: skip


STATS = summary([[6, 0, 2], [3, 3, 1]])


def stats_before(event: str) -> Tamper:
    """The line moved to before another."""

    def tamper(lines: Lines) -> int:
        line = lines.pop(find(lines, "model_stats"))
        index = find(lines, event)
        lines.insert(index, line)
        return index

    return tamper


def figure(name: str, value: Any) -> Tamper:
    return edit("model_stats", stats=lambda stats: {**stats, name: value})


STATS_CASES: dict[str, tuple[Tamper, str]] = {
    "twice": (double("model_stats"), "a second model_stats"),
    "before final": (stats_before("final"), "model_stats without final"),
    "before selection": (stats_before("selection"), "model_stats without final"),
    "no counts": (edit("model_stats", stats={}), "counts are not a table"),
    "a negative count": (figure("counts", [[6, 0, -2], [3, 3, 1]]), "counts are not a table"),
    "half a count": (figure("counts", [[6, 0, 2.5], [3, 3, 1]]), "counts are not a table"),
    "a layer of more experts": (figure("counts", [[6, 0, 2], [3, 3, 0, 1]]), "counts are not a table"),
    "a count more": (figure("counts", [[6, 0, 3], [3, 3, 1]]), "tokens does not follow"),
    "other tokens": (figure("tokens", 9), "tokens does not follow"),
    "another share": (figure("skipped", 0.25), "skipped does not follow"),
    "another layer's share": (figure("skipped_by_layer", [0.25, 0.25]), "skipped_by_layer does not follow"),
    "a layer less": (figure("skipped_by_layer", [0.25]), "skipped_by_layer does not follow"),
    "another load": (figure("busiest_by_layer", [2.0, 2.0]), "busiest_by_layer does not follow"),
    "other unused experts": (figure("unused_experts", True), "unused_experts does not follow"),
    "a figure more": (figure("more", 1), "its figures are"),
}  # fmt: skip


@pytest.mark.parametrize("case", STATS_CASES)
def test_changed_model_stats_are_rejected_at_their_line(case: str, tmp_path: Path) -> None:
    path = record(tmp_path / "run.jsonl", FakeBackend(wordy, stats=STATS))
    assert verify_file(path, equivalent=same).finished
    lines = read_lines(path)
    tamper, reason = STATS_CASES[case]
    index = tamper(lines)
    write_lines(path, lines)
    with pytest.raises(VerificationError, match=rf"line {index + 1} \(model_stats\).*{reason}"):
        verify_file(path, equivalent=same)


@pytest.mark.parametrize("case", CASES)
def test_changed_line_is_rejected(case: str, trail: Lines, tmp_path: Path) -> None:
    tamper, reason = CASES[case]
    lines = copy.deepcopy(trail)
    index = tamper(lines)
    assert [list(line.items()) for line in lines] != [list(line.items()) for line in trail]
    path = tmp_path / "run.jsonl"
    write_lines(path, lines)
    with pytest.raises(VerificationError, match=rf"run\.jsonl, line {index + 1}(?: \(|:).*(?:{reason})"):
        verify_file(path, equivalent=same)


@sizes("all_lines", False, True)
def test_every_changed_value_is_noticed(all_lines: bool, trail: Lines, tmp_path: Path) -> None:
    """Each changed scalar is noticed, except those that only report: of all lines, or of two of each kind of event."""
    free = {
        ("run_start", "model_id"), ("run_start", "quantization"), ("run_setup", "package_version"),
        ("run_setup", "engine"), ("run_setup", "engine_version"), ("run_setup", "dtype"), ("run_setup", "tokenizer"),
        ("run_setup", "tokenizer_digest"), ("run_setup", "model_digest"),
        ("trace_complete", "elapsed_s"), ("round_complete", "memory_estimate_bytes"), ("round_complete", "elapsed_s"),
        ("run_end", "peak_memory_bytes"), ("run_end", "elapsed_s"),
    }  # fmt: skip
    path = tmp_path / "run.jsonl"
    missed = set()
    names = [line["event"] for line in trail]
    for index, line in enumerate(trail):
        if not all_lines and line["event"] in names[:index] and line["event"] in names[index + 1 :]:
            continue
        for name, value in line.items():
            other: Any = {str: lambda v: v + "~", int: lambda v: v + 1, float: lambda v: v + 1, bool: lambda v: not v}
            if type(value) not in other or (line["event"], name) in free:
                continue
            changed = [*trail[:index], {**line, name: other[type(value)](value)}, *trail[index + 1 :]]
            write_lines(path, changed)
            try:
                verify_file(path, equivalent=same)
            except VerificationError:
                continue
            missed.add((line["event"], name))
    assert missed <= {("trace_complete", "text")}  # of a final trace after its box; only the tokenizer notices


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value can be changed; of long lists only a few places."""
    found = [path] if path else []
    inner = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])
    for key, item in inner if isinstance(value, dict) else [*inner[:2], *inner[-1:]]:
        found += places(item, (*path, key))
    return found


@pytest.mark.parametrize("carry", ["tail", "summary"])
def test_random_values_raise_verification_error(carry: str, tmp_path: Path) -> None:
    """Any value in a file gives a sentence. It is neither accepted nor does it crash the check."""
    lines = read_lines(record(tmp_path / "run.jsonl", carry=carry))
    path, rng = tmp_path / "changed.jsonl", random.Random(7)
    nonsense = [None, "", "r9-99", [], {}, -1, 2**70, 1e300, True, [[]], [""], {"role": "user"}, ["r0-00", "r0-00"]]
    for _ in range(250):
        changed = copy.deepcopy(lines)
        index = rng.randrange(len(changed))
        *before, last = rng.choice(places(changed[index]))
        target: Any = changed[index]
        for key in before:
            target = target[key]
        old, target[last] = target[last], rng.choice(nonsense)
        if old == target[last] or last in FREE:
            continue
        write_lines(path, changed)
        with pytest.raises(VerificationError, match=r"line \d+"):
            verify_file(path, equivalent=same)


#: Reported only: nothing can be derived of them.
FREE = {
    "model_id", "quantization", "package_version", "engine", "engine_version", "dtype", "context_length", "max_rows",
    "memory_limit_bytes", "memory_estimate_bytes", "peak_memory_bytes", "elapsed_s",
}  # fmt: skip


def no_error_after_a_failed_trace(lines: Lines) -> int:
    index = next(i for i, line in enumerate(lines) if line.get("finish_reason") == "error")
    del lines[index + 1]
    return index + 1


FAILING: dict[str, tuple[Tamper, str]] = {
    "no error after a failed trace": (no_error_after_a_failed_trace, "an error event must explain why"),
    "another retry seed": (edit("trace_retry", seed=lambda s: s ^ 1), "by the lineage"),
    "another retry number": (edit("trace_retry", attempt=2), "the next attempt is 1"),
    "an error without a message": (edit("error", message=""), "no message of the stage"),
    "a retry too many": (double("trace_retry"), "the next attempt is 2|more retries"),
}


@pytest.mark.parametrize("case", FAILING)
def test_changed_failures_are_rejected_at_their_line(case: str, tmp_path: Path) -> None:
    path = record(tmp_path / "run.jsonl", FakeBackend(wordy, fail=failing(3, 0.3)), max_retries=1, final_candidates=0)
    lines = read_lines(path)
    tamper, reason = FAILING[case]
    index = tamper(lines)
    write_lines(path, lines)
    with pytest.raises(VerificationError, match=rf"line {index + 1} .*(?:{reason})"):
        verify_file(path, equivalent=same)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"seed": lambda s: s ^ 1}, "the seed of the summary"),
        ({"prompt_text": lambda t: t.replace("hm", "mh", 1)}, "the text is not the end"),
        ({"prompt_token_ids": lambda ids: ids[1:]}, "not the summary template"),
        ({"text": lambda t: "x" + t}, ""),
        ({"token_ids": lambda ids: ids[:-2], "generated_tokens": lambda n: n - 2}, "finish_reason|although the budget"),
        ({"finish_reason": "error"}, "a summary that failed"),
    ],
)
def test_changed_summaries_are_rejected_at_their_line(values: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = record(tmp_path / "run.jsonl", carry="summary")
    lines = read_lines(path)
    index = edit("summary_complete", **values)(lines)
    write_lines(path, lines)
    where = f"line {index + 1} " if reason else ""
    with pytest.raises(VerificationError, match=rf"{where}.*(?:{reason})"):
        verify_file(path, equivalent=same, codec=None if reason else CODEC)


def test_missing_summary_is_rejected(tmp_path: Path) -> None:
    path = record(tmp_path / "run.jsonl", carry="summary")
    lines = read_lines(path)
    del lines[find(lines, "summary_complete", "r0-00")]
    write_lines(path, lines)
    with pytest.raises(VerificationError, match=r"tail_extracted.*no summary, and no error explains why"):
        verify_file(path)


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (edit("run_setup", quote_token_ids=[72]), "quote_token_ids are not"),
        (edit("run_setup", eos_token_ids=[0, 1]), "other EOS ids"),
        (edit("run_setup", end_of_thinking=[]), "not one text for each marker"),
        (edit("trace_complete", "r2-00", text=lambda t: "x" + t), "the text is not that of the ids"),
        (edit("run_setup", prompt_token_ids=lambda ids: [*ids[:-1], 7]), "prompt_token_ids are not"),
    ],
)
def test_tokenizer_finds_more_changes(tamper: Tamper, reason: str, trail: Lines, tmp_path: Path) -> None:
    lines = copy.deepcopy(trail)
    index = tamper(lines)
    path = tmp_path / "run.jsonl"
    write_lines(path, lines)
    with pytest.raises(VerificationError, match=rf"line {index + 1} .*{reason}"):
        verify_file(path, codec=CODEC)


def test_resumed_run_is_checked_across_its_sessions(tmp_path: Path) -> None:
    path = record(tmp_path / "run.jsonl")
    lines = path.read_bytes().split(b"\n")[:-1]
    path.write_bytes(b"\n".join(lines[:9]) + b"\n")
    record(path)
    lines = read_lines(path)
    index = find(lines, "run_resumed")
    assert index == 9
    path = tmp_path / "changed.jsonl"
    for values, reason in (
        ({"max_retries": 1000}, "max_retries must be"),
        ({"created_at": ""}, "not an ISO 8601"),
        ({"concurrency": 0}, "concurrency must be"),
    ):
        write_lines(path, [{**line, **values} if i == index else line for i, line in enumerate(lines)])
        with pytest.raises(VerificationError, match=rf"line {index + 1} .*{reason}"):
            verify_file(path)
    write_lines(path, [line for line in lines if line["event"] != "run_resumed"])
    with pytest.raises(VerificationError, match="has started already in this session"):
        verify_file(path)
