"""The contract of the nine events (spec/audit.md), to the letter, and the round trip of all of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx import audit
from markovian_rsa_mlx.audit import EVENT_TYPES, AuditWriter, event_from_dict, read_events
from markovian_rsa_mlx.audit.log_file import encode_line
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.json_strict import parse_line

CONTRACT = {
    "RunStartEvent": ("run_start", "run_id model_id quantization config prompt created_at"),
    "GenerationStartEvent": (
        "generation_start",
        "run_id round trace_id seed prompt_token_count max_tokens parent_trace_ids",
    ),
    "TraceCompleteEvent": (
        "trace_complete",
        "run_id round trace_id text token_ids generated_tokens finish_reason elapsed_s",
    ),
    "TailExtractedEvent": ("tail_extracted", "run_id round trace_id tail_token_ids tail_text tail_tokens"),
    "AggregationPromptEvent": (
        "aggregation_prompt",
        "run_id round trace_id selected_tail_trace_ids prompt_text prompt_token_ids",
    ),
    "RoundCompleteEvent": ("round_complete", "run_id round trace_ids memory_estimate_bytes elapsed_s"),
    "FinalEvent": ("final", "run_id final_trace_id final_text all_final_trace_ids answer_selection"),
    "RunEndEvent": ("run_end", "run_id elapsed_s total_generated_tokens peak_memory_bytes"),
    "ErrorEvent": ("error", "run_id stage message recoverable"),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_contract_class_has_exactly_its_fields_in_order(name: str) -> None:
    event_name, field_names = CONTRACT[name]
    event_type = getattr(audit, name)
    assert issubclass(event_type, audit.Event)
    assert [f.name for f in dataclasses.fields(event_type)] == ["EVENT_NAME", *field_names.split()]
    assert not dataclasses.fields(event_type)[0].init
    event = event_type(*range(len(field_names.split())))
    assert event.EVENT_NAME == event_type.EVENT_NAME == event_name
    assert list(event.to_dict().items()) == [("event", event_name), *zip(field_names.split(), range(9), strict=False)]
    event.run_id = "another"  # ordinary and mutable
    assert event.to_dict()["run_id"] == "another"
    with pytest.raises(TypeError):
        event_type(*range(len(field_names.split())), EVENT_NAME="x")


def test_to_dict_converts_only_a_config() -> None:
    config, mark = RSAConfig(), object()
    start = audit.RunStartEvent("r", "m", "none", config, "p", "t")
    assert start.to_dict()["config"] == dataclasses.asdict(config)
    assert audit.ErrorEvent("r", "s", mark, True).to_dict()["message"] is mark  # type: ignore[arg-type]
    ids = [1, 2]
    assert audit.TailExtractedEvent("r", 0, "r0-00", ids, "t", 2).to_dict()["tail_token_ids"] is ids


def _values(hint: Any) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _values(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is Union or str(origin) == "<class 'types.UnionType'>":
        return st.one_of([_values(argument) for argument in arguments])
    if origin is list:
        return st.lists(_values(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(st.text(max_size=3), _values(arguments[1]), max_size=2)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(),
        int: st.integers(0, 2**63),
        bool: st.booleans(),
        float: st.floats(0, allow_nan=False, allow_infinity=False),
        type(None): st.none(),
        Any: st.integers() | st.text(),
        RSAConfig: st.builds(RSAConfig, seed=st.none() | st.integers(0, 2**60), template=st.sampled_from(["zaya_v1"])),
    }
    return plain[hint]


def _events() -> st.SearchStrategy[Any]:
    def one(event_type: Any) -> st.SearchStrategy[Any]:
        hints = get_type_hints(event_type)
        names = [f.name for f in dataclasses.fields(event_type) if f.init]
        return st.builds(event_type, **{name: _values(hints[name]) for name in names})

    return st.one_of([one(event_type) for event_type in EVENT_TYPES.values()])


@given(_events())
def test_every_event_is_read_as_it_was_written(event: Any) -> None:
    line = encode_line(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert event_from_dict(parse_line(line[:-1])) == event


def test_unicode_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x1cf\rg\nh"
    with AuditWriter(tmp_path / "a.jsonl") as writer:
        writer.write(audit.ErrorEvent("r", "s", text, True))
        writer.write(audit.ErrorEvent("r", "s", "œ", True))
    assert [event.message for event in read_events(tmp_path / "a.jsonl")] == [text, "œ"]  # type: ignore[attr-defined]
    assert len(json.dumps("œ")) > len('"œ"')
    assert "œ" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")
