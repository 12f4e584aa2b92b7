"""The reader: typed events, a torn last line forgiven, any other bad line named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import (
    RunStartEvent,
    UnknownEvent,
    event_from_dict,
    is_finished,
    read_events,
    read_lenient,
    scan_file,
)
from markovian_rsa_mlx.audit.log_file import LogTail, first_event, iter_events, last_events
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import AuditError
from tests.support.audit_files import SMALL, write_lines

Lines = list[dict[str, Any]]


def test_recorded_run_is_read_as_typed_events(trail: Lines, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, trail)
    events = read_events(path)
    assert [event.to_dict() for event in events] == trail
    assert isinstance(events[0], RunStartEvent)
    assert events[0].config == SMALL.replace(final_candidates=0, answer_selection="majority")
    assert is_finished(events)
    assert not is_finished(events[:-1])


def test_file_cut_at_any_byte_has_a_torn_last_line(trail: Lines, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, trail[-3:])
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for size in range(ends[0], len(content) + 1):
        path.write_bytes(content[:size])
        scan = scan_file(path)
        whole = [end for end in ends if end <= size or end == size + 1]  # the last newline may be missing
        assert len(scan.lines) == len(whole)
        assert scan.complete_bytes == min(whole[-1], size)
        assert scan.torn_bytes == size - scan.complete_bytes


TORN = [
    b"\x00\x00\x00",
    b'{"event": "fin',
    b'{"event": "\xc3',
    b'{"event": "final", "x": -1.5e',
    b'{"event": "x", "y": [tr',
]


@pytest.mark.parametrize("torn", TORN)
def test_last_line_that_is_the_beginning_of_an_object_is_torn(trail: Lines, tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, trail[:2])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    scan = scan_file(path)
    assert (scan.complete_bytes, scan.torn_bytes) == (len(whole), len(torn))
    path.write_bytes(whole + torn + b"\n" + whole)
    with pytest.raises(AuditError, match=r"run\.jsonl, line 3: not a JSON object"):
        read_events(path)


@pytest.mark.parametrize(
    "wrong",
    [
        *(torn + b"\n" for torn in TORN),
        b'{"event": "run_end", "elapsed_s": NaN}',
        b'{"event": "run_end", "elapsed_s": NaN, "x',
        b'{"event": "run_end", "elapsed_s": -Inf',
        b'{"event": "run_end"} x',
        b'{"event": "\xff',
        b"\xff\xfe\n",
        b"[]\n",
        b"\n",
        b"[" * 200_000,
        b'{"a":' * 200_000 + b"1" + b"}" * 200_000 + b"\n",
    ],
    ids=range(15),
)
def test_last_line_that_no_crash_can_have_torn_raises_audit_error(trail: Lines, tmp_path: Path, wrong: bytes) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, trail[:2])
    path.write_bytes(path.read_bytes() + wrong)
    with pytest.raises(AuditError, match=r"run\.jsonl, line 3: not a JSON object"):
        scan_file(path)
    assert len(scan_file(path, on_error="skip").lines) == 2


def test_torn_first_line_of_another_file_raises_audit_error(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("buy milk")
    with pytest.raises(AuditError, match="line 1"):
        scan_file(notes)
    notes.write_bytes(b'{"event": "run_sta')
    assert scan_file(notes).torn_bytes == 18
    notes.write_bytes(b"")
    assert scan_file(notes).lines == ()


def test_missing_file_raises_audit_error(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"^The audit file .*none\.jsonl cannot be read: No such file or directory\.$"):
        read_events(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"event": "error", "run_id": "r", "stage": "s", "message": "m"}', "error without recoverable"),
        ('{"event": "error", "run_id": "r", "stage": "s", "message": "m", "recoverable": 1}', "which is not bool"),
        ('{"event": "run_end", "run_id": "r", "elapsed_s": 1, "total_generated_tokens": 1.0, "peak_memory_bytes": 1}',
         "which is not int"),
        ('{"event": "run_end", "run_id": "r", "elapsed_s": true, "total_generated_tokens": 1, "peak_memory_bytes": 1}',
         "which is not float"),
        ('{"event": "error", "run_id": "r", "run_id": "r", "stage": "s", "message": "m", "recoverable": true}',
         "duplicate key"),
        ('{"run_id": "r"}', 'no "event"'),
    ],
)  # fmt: skip
def test_invalid_line_raises_audit_error_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "run.jsonl"
    good = '{"event": "error", "run_id": "r", "stage": "s", "message": "m", "recoverable": true}'
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(AuditError, match=rf"run\.jsonl, line 2: .*{reason}"):
        read_events(path)


@pytest.mark.parametrize("text", ["NaN", '"\\ud800"', "1e"])
def test_invalid_json_raises_audit_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.jsonl"
    line = json.dumps({"event": "later_thing", "x": 0})
    path.write_text(f"{line}\n{line.replace('0', text)}\n{line}\n")
    with pytest.raises(AuditError, match="line 2: not a JSON object"):
        read_events(path)


def test_unknown_events_and_fields_of_a_newer_version_are_read(trail: Lines, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    newer = [{**trail[0], "colour": "blue", "config": {**trail[0]["config"], "zeal": 3}}, {"event": "later", "x": [1]}]
    write_lines(path, newer)
    scan = scan_file(path)
    first, second = scan.events
    assert first.to_dict() == trail[0]
    assert scan.lines[0].raw["colour"] == "blue"
    assert isinstance(second, UnknownEvent)
    assert second.EVENT_NAME == "later"
    assert second.to_dict() == newer[1]


def test_missing_setting_gets_its_default() -> None:
    raw = RunStartEvent("r", "m", "none", RSAConfig(), "p", "t").to_dict()
    del raw["config"]["final_min_p"]
    event = event_from_dict(raw)
    assert isinstance(event, RunStartEvent)
    assert event.config == RSAConfig()


def test_on_error_stop_ends_before_the_invalid_line(trail: Lines, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, [*trail[:3], {**trail[3], "run_id": 7}, *trail[4:]])
    log = scan_file(path, on_error="stop")
    assert [line.raw for line in log.lines] == trail[:3]
    assert [(problem.line, problem.shown) for problem in log.problems] == [(4, False)]
    assert log.torn_bytes == 0


def test_on_error_skip_keeps_what_can_be_read(trail: Lines, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    start = {**trail[0], "config": {**trail[0]["config"], "population": "many"}}
    write_lines(path, [start, {"event": "error"}, *trail[1:4], {**trail[4], "run_id": "other"}])
    with path.open("ab") as file:
        file.write(b'{"event": "trace_com')
    log = scan_file(path, on_error="skip")
    assert log.start is not None
    assert (log.start.prompt, log.lines[0].partial) == (trail[0]["prompt"], True)
    assert log.lines[0].raw == start
    assert [line.raw for line in log.lines[1:]] == trail[1:4]
    assert [(problem.line, problem.shown) for problem in log.problems] == [
        (1, True),
        (2, False),
        (7, False),
        (0, False),
    ]
    assert log.torn_bytes == 20


def test_lenient_reader_drops_parents_of_the_same_round(trail: Lines, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    lines = copy.deepcopy(trail)
    prompt = next(line for line in lines if line["event"] == "aggregation_prompt" and line["trace_id"] == "r1-00")
    parents, prompt["selected_tail_trace_ids"] = prompt["selected_tail_trace_ids"], ["r1-00", "r0-00"]
    write_lines(path, lines)
    log = read_lenient(path)
    assert [problem.line for problem in log.problems] == [lines.index(prompt) + 1]
    event = log.lines[lines.index(prompt)].event
    assert event.selected_tail_trace_ids == ["r0-00"]  # type: ignore[attr-defined]
    assert len(parents) == 2


def test_log_tail_returns_complete_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogTail, "CHUNK", 4)
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"first\nsec")
    tail, found = LogTail(path), []

    def read_all() -> None:
        more = True
        while more:
            lines, more = tail.read()
            found.extend(lines)

    read_all()
    assert found == [b"first"]
    with path.open("ab") as file:
        file.write(b"ond\n")
    read_all()
    assert found == [b"first", b"second"]


def test_parts_of_a_file_are_read_without_the_rest(
    trail: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, trail)
    monkeypatch.setattr(LogTail, "CHUNK", 100)
    assert first_event(path) == trail[0]
    assert last_events(path, 3) == trail[-3:]
    assert last_events(path, 10_000) == trail
    found = list(iter_events(path, ["trace_complete"]))
    assert found == [line for line in trail if line["event"] == "trace_complete"]
    write_lines(path, trail[1:])
    assert first_event(path) is None
