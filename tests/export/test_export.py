"""Runs exported to other tools, read by the tools' own readers where these are installed."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx.audit import RunState, read_lenient
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import GenerationRequest
from markovian_rsa_mlx.cli import main
from markovian_rsa_mlx.export import FORMATS, export

from ..support.fakes import FakeBackend, FakeEngine, boxed
from ..support.runs import run, small

TRAILS = Path(__file__).parents[1] / "trails"
NAMES = sorted(path.stem for path in TRAILS.glob("*.jsonl"))
#: An interpreter that has inspect_ai, which is too heavy for the environment of the tests.
INSPECT_PYTHON = os.environ.get("MRSA_INSPECT_PYTHON", sys.executable)
READ_LOG = """
import json, sys
from inspect_ai.log import read_eval_log
log = read_eval_log(sys.argv[1])
(sample,) = log.samples
events = [event for event in sample.events if event.event == "model"]
print(json.dumps([log.status, sample.output.completion, [event.metadata["trace_id"] for event in events]]))
"""


def state_of(name: str) -> RunState:
    return RunState(read_lenient(TRAILS / f"{name}.jsonl").events)


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in export(state_of(name), "jsonl").splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_traces_with_their_parents_tokens_and_answer(name: str) -> None:
    state, rows = state_of(name), rows_of(name)
    assert {row["trace_id"] for row in rows} == {trace.trace_id for trace in state.traces.values() if trace.starts}
    assert sum(row["generated_tokens"] for row in rows if row["finish_reason"]) <= state.spent_tokens
    assert [row["trace_id"] for row in rows if row["is_answer_of_run"]] == (
        [state.selection.chosen_trace_id] if state.selection else []
    )
    order = {row["trace_id"]: row for row in rows}
    for row in rows:
        assert row["started_s"] <= (row["ended_s"] if row["ended_s"] is not None else row["started_s"])
        assert all(order[parent]["round"] < row["round"] for parent in row["parents"])


def test_rows_are_sorted_by_round_and_index() -> None:
    state, rows = state_of("finished"), rows_of("finished")
    assert list(state.traces) != sorted(state.traces)  # the traces began in another order
    assert [row["trace_id"] for row in rows] == sorted(state.traces)


def request_of(name: str) -> Any:
    """Return the exported spans as the message that a collector reads."""
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    parse = pytest.importorskip("google.protobuf.json_format").Parse
    values = json.loads(export(state_of(name), "otel"))
    (scope,) = values["resourceSpans"][0]["scopeSpans"]
    for span in scope["spans"]:  # OTLP has ids in hexadecimal, protobuf's own JSON in base64
        for place in (span, *span.get("links", ())):
            for key in place.keys() & {"traceId", "spanId", "parentSpanId"}:
                place[key] = base64.b64encode(bytes.fromhex(place[key])).decode()
    return parse(json.dumps(values), service.ExportTraceServiceRequest())


def read_by_sdk(values: dict[str, Any]) -> list[Any]:
    """Return exported spans as spans of OpenTelemetry's SDK."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    def plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
        def value(typed: dict[str, Any]) -> Any:
            ((kind, content),) = typed.items()
            if kind == "arrayValue":
                return [value(each) for each in content["values"]]
            return int(content) if kind == "intValue" else content

        return {attribute["key"]: value(attribute["value"]) for attribute in attributes}

    def context(trace_id: str, span_id: str) -> Any:
        return trace.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False)

    (each,) = values["resourceSpans"]
    (scoped,) = each["scopeSpans"]
    return [
        sdk.ReadableSpan(
            span["name"],
            context(span["traceId"], span["spanId"]),
            context(span["traceId"], span["parentSpanId"]) if "parentSpanId" in span else None,
            Resource(plain(each["resource"]["attributes"])),
            plain(span["attributes"]),
            links=[trace.Link(context(link["traceId"], link["spanId"])) for link in span.get("links", ())],
            kind=trace.SpanKind(span["kind"] - 1),
            status=trace.Status(trace.StatusCode(span["status"]["code"])),
            start_time=int(span["startTimeUnixNano"]),
            end_time=int(span["endTimeUnixNano"]),
            instrumentation_scope=InstrumentationScope(scoped["scope"]["name"], schema_url=scoped["schemaUrl"]),
        )
        for span in scoped["spans"]
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_sdk_of_opentelemetry_reads_the_spans(name: str) -> None:
    encoder = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.trace_encoder")
    conventions = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    spans = read_by_sdk(json.loads(export(state_of(name), "otel")))
    assert all(span.context.is_valid for span in spans)
    assert all(span.end_time >= span.start_time for span in spans)
    known = {value for key, value in vars(conventions).items() if key.startswith("GEN_AI_")}
    used = {key for span in spans for key in span.attributes if key.startswith("gen_ai.")}
    assert used <= known
    assert all(json.loads(span.to_json())["attributes"] for span in spans)
    messages = (encoder.encode_spans(spans), request_of(name))
    encoded, exported = (message.resource_spans[0].scope_spans[0].spans for message in messages)
    for ours, theirs in zip(exported, encoded, strict=True):
        for link in (*theirs.links, theirs):
            link.ClearField("flags")  # about remote parents, which a file does not know
        assert ours == theirs


@pytest.mark.parametrize("name", NAMES)
def test_a_collector_reads_the_spans(name: str) -> None:
    read = request_of(name)
    root, *traces = read.resource_spans[0].scope_spans[0].spans
    rows = rows_of(name)
    assert (root.name, len(traces)) == ("invoke_agent markovian-rsa", len(rows))
    ids = {row["trace_id"]: span.span_id for row, span in zip(rows, traces, strict=True)}
    for row, span in zip(rows, traces, strict=True):
        attributes = {attribute.key: attribute.value for attribute in span.attributes}
        assert attributes["gen_ai.operation.name"].string_value == "chat"
        assert attributes["gen_ai.usage.output_tokens"].int_value == row["generated_tokens"]
        assert [link.span_id for link in span.links] == [ids[parent] for parent in row["parents"]]
        assert (span.trace_id, span.parent_span_id) == (root.trace_id, root.span_id)
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano


def test_log_has_a_model_event_per_trace() -> None:
    log = json.loads(export(state_of("finished"), "inspect"))
    events = [event for event in log["samples"][0]["events"] if event["event"] == "model"]
    assert sorted(event["metadata"]["trace_id"] for event in events) == [row["trace_id"] for row in rows_of("finished")]
    assert log["samples"][0]["metadata"]["answer"] == "((12 + 9) + 17) - 3"


@pytest.mark.parametrize(
    ("reason", "of_log", "of_span"), [("eos", "stop", "stop"), ("max_tokens", "max_tokens", "length")]
)
def test_answer_has_the_finish_reason_of_its_trace(reason: str, of_log: str, of_span: str) -> None:
    state = state_of("finished")
    answer = state.answer_trace
    assert answer is not None
    assert answer.complete is not None
    answer.complete.finish_reason = reason
    (sample,) = json.loads(export(state, "inspect"))["samples"]
    assert sample["output"]["choices"][0]["stop_reason"] == of_log
    assert json.loads(attributes_of(state)["gen_ai.output.messages"]["stringValue"])[0]["finish_reason"] == of_span


def test_unfinished_run_has_no_finish_reason() -> None:
    state = state_of("killed")
    (sample,) = json.loads(export(state, "inspect"))["samples"]
    assert sample["output"]["choices"][0]["stop_reason"] == "unknown"


@pytest.mark.parametrize("settings", [{"carry": "summary"}, {"answer_selection": "tournament", "final_candidates": 0}])
def test_usage_counts_the_prompts_of_summaries_and_judgements(settings: dict[str, Any]) -> None:
    state = RunState(run(FakeBackend(), small(**settings)).events)
    prompts = [trace.starts[-1].prompt_token_count for trace in state.traces.values() if trace.starts]
    others = [event.prompt_token_ids for event in state.judgements]
    others += [trace.summary.prompt_token_ids for trace in state.traces.values() if trace.summary is not None]
    assert others
    expected = sum(prompts) + sum(map(len, others))
    (usage,) = json.loads(export(state, "inspect"))["stats"]["model_usage"].values()
    assert usage["input_tokens"] == expected
    assert attributes_of(state)["gen_ai.usage.input_tokens"] == {"intValue": str(expected)}


def spans_of(state: RunState) -> list[dict[str, Any]]:
    (resource,) = json.loads(export(state, "otel"))["resourceSpans"]
    spans: list[dict[str, Any]] = resource["scopeSpans"][0]["spans"]
    return spans


def output_tokens(span: dict[str, Any]) -> int:
    values = {attribute["key"]: attribute["value"] for attribute in span["attributes"]}
    return int(values["gen_ai.usage.output_tokens"]["intValue"])


@pytest.mark.parametrize(
    "settings",
    [
        {"answer_selection": "tournament", "final_candidates": 0},
        {"early_stop": "posterior", "answer_selection": "majority", "rounds": 0, "population": 16, "concurrency": 4},
        {"early_stop": "agreement", "rounds": 3, "final_candidates": 0},
    ],
    ids=["tournament", "posterior", "agreement"],
)
def test_tokens_of_all_generations_are_exported_and_links_lead_to_spans(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    def write(request: GenerationRequest, rng: random.Random) -> str:
        if "Two attempts at this problem follow." in request.messages[-1]["content"]:
            return boxed(rng.choice("AB"))
        return boxed(rng.choice(answers), "think " * rng.randrange(1, 20))

    answers = "12345678" if settings.get("answer_selection") == "tournament" else "1112"
    path = tmp_path / "run.jsonl"
    state = RunState(run(FakeEngine(write, chunk=2), small(**settings), path).events)
    assert state.end is not None
    assert state.judgements or state.cancelled or any(trace.inherited for trace in state.traces.values())
    total = state.end.total_generated_tokens
    assert verify_file(path).generated_tokens == total
    root, *spans = spans_of(state)
    assert output_tokens(root) == total == sum(map(output_tokens, spans))
    ids = {span["spanId"] for span in spans}
    links = [link["spanId"] for span in spans for link in span["links"]]
    assert set(links) <= ids
    assert len(ids) == len(spans)
    expected = {state.origin(parent) for trace in state.traces.values() if trace.starts for parent in trace.parent_ids}
    assert len(set(links)) == len(expected | {trace_id for event in state.judgements for trace_id in event.pair})
    log = json.loads(export(state, "inspect"))
    (usage,) = log["stats"]["model_usage"].values()
    events = [event for event in log["samples"][0]["events"] if event["event"] == "model"]
    assert usage["output_tokens"] == total == sum(event["output"]["usage"]["output_tokens"] for event in events)
    names = {event["metadata"]["trace_id"] for event in events}
    assert all(parent in names for event in events for parent in event["metadata"]["parents"])
    assert len(events) == len(spans)


@pytest.mark.parametrize("name", ["killed", "stopped"])
def test_total_of_an_unfinished_run_is_the_sum_of_its_traces(name: str) -> None:
    state = state_of(name)
    assert state.end is None
    root, *spans = spans_of(state)
    assert output_tokens(root) == sum(map(output_tokens, spans)) > 0
    (usage,) = json.loads(export(state, "inspect"))["stats"]["model_usage"].values()
    assert usage["output_tokens"] == output_tokens(root)


def test_damaged_chat_is_exported() -> None:
    state = state_of("finished")
    assert state.setup is not None
    state.setup.messages[:] = [{"content": "One?"}, {"role": "system"}]
    (sample,) = json.loads(export(state, "inspect"))["samples"]
    assert sample["input"] == [{"role": "user", "content": "One?"}, {"role": "system", "content": ""}]


def attributes_of(state: RunState) -> dict[str, Any]:
    """Return the attributes of the run's own span."""
    (scope,) = json.loads(export(state, "otel"))["resourceSpans"][0]["scopeSpans"]
    return {attribute["key"]: attribute["value"] for attribute in scope["spans"][0]["attributes"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finished", "killed", "vllm", "summary"])
def test_inspect_reads_the_log(name: str, tmp_path: Path) -> None:
    if subprocess.run([INSPECT_PYTHON, "-c", "import inspect_ai"], capture_output=True, check=False).returncode:
        pytest.skip("no inspect_ai; MRSA_INSPECT_PYTHON names an interpreter that has it")
    state = state_of(name)
    (tmp_path / "run.json").write_text(export(state, "inspect"), encoding="utf-8")
    line = [INSPECT_PYTHON, "-c", READ_LOG, str(tmp_path / "run.json")]
    status, completion, traces = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    assert status == ("success" if state.end else "started")
    assert completion == (state.final.final_text if state.final else "")
    assert traces == [row["trace_id"] for row in rows_of(name)]


@pytest.mark.parametrize("format_name", FORMATS)
def test_command_writes_files_and_standard_output(
    format_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MRSA_HOME", str(tmp_path))
    trail, out = TRAILS / "finished.jsonl", tmp_path / "new" / "run.json"
    assert main(["export", str(trail), "--format", format_name]) == 0
    printed = capsys.readouterr().out
    assert main(["export", str(trail), "--format", format_name, "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == printed == export(state_of("finished"), format_name)
    assert out.stat().st_mode & 0o777 == 0o600


def test_command_refuses_to_replace_the_trail_and_files_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trail = tmp_path / "run.jsonl"
    trail.write_bytes((TRAILS / "finished.jsonl").read_bytes())
    assert main(["export", str(trail), "--format", "jsonl", "--out", str(trail)]) == 1
    assert trail.read_bytes() == (TRAILS / "finished.jsonl").read_bytes()
    trail.write_bytes(trail.read_bytes().split(b"\n", 1)[1])
    assert main(["export", str(trail), "--format", "jsonl"]) == 1
    assert "run_start" in capsys.readouterr().err
