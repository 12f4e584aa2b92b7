"""The reader: typed events, a torn last line forgiven, any other bad line named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import RunStartEvent, UnknownEvent, event_from_dict, is_finished, read_events, scan_file
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.errors import AuditError

from .conftest import SMALL, write_lines

Lines = list[dict[str, Any]]


def test_a_real_trail_comes_back_typed(trail: Lines, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, trail)
    events = read_events(path)
    assert [event.to_dict() for event in events] == trail
    assert isinstance(events[0], RunStartEvent)
    assert events[0].config == SMALL.replace(final_candidates=0, answer_selection="majority")
    assert is_finished(events)
    assert not is_finished(events[:-1])


def test_a_cut_at_every_byte_of_the_last_lines_is_forgiven(trail: Lines, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "torn", [b"\x00\x00\x00", b'{"event": "fin', b"\xff\xfe\n", b'{"event": "\xc3\n', b"[]\n", b"\n"]
)
def test_any_last_line_that_is_no_object_is_torn(trail: Lines, tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "run.jsonl"
    write_lines(path, trail[:2])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    scan = scan_file(path)
    assert (scan.complete_bytes, scan.torn_bytes) == (len(whole), len(torn))
    path.write_bytes(whole + torn.removesuffix(b"\n") + b"\n" + whole)
    with pytest.raises(AuditError, match=r"run\.jsonl, line 3: not a JSON object"):
        read_events(path)


def test_a_file_that_is_no_trail_is_not_taken_for_a_torn_one(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("buy milk")
    with pytest.raises(AuditError, match="line 1"):
        scan_file(notes)
    notes.write_bytes(b'{"event": "run_sta')
    assert scan_file(notes).torn_bytes == 18
    notes.write_bytes(b"")
    assert scan_file(notes).lines == ()


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
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
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "run.jsonl"
    good = '{"event": "error", "run_id": "r", "stage": "s", "message": "m", "recoverable": true}'
    path.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(AuditError, match=rf"run\.jsonl, line 2: .*{reason}"):
        read_events(path)


@pytest.mark.parametrize("text", ["NaN", '"\\ud800"', "1e"])
def test_what_is_no_proper_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.jsonl"
    line = json.dumps({"event": "later_thing", "x": 0})
    path.write_text(f"{line}\n{line.replace('0', text)}\n{line}\n")
    with pytest.raises(AuditError, match="line 2: not a JSON object"):
        read_events(path)


def test_a_newer_version_can_be_read(trail: Lines, tmp_path: Path) -> None:
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


def test_an_older_config_gets_the_defaults() -> None:
    raw = RunStartEvent("r", "m", "none", RSAConfig(), "p", "t").to_dict()
    del raw["config"]["final_min_p"]
    event = event_from_dict(raw)
    assert isinstance(event, RunStartEvent)
    assert event.config == RSAConfig()
