"""A run as OpenTelemetry spans by the semantic conventions for generative AI, in the JSON of OTLP.

The run is a span `invoke_agent`. Every trace is a span `chat` below it, linked to the traces whose tails it read, and
so is every judgement, linked to the two that it compares. A trace that inherited has no span: links lead to the one
that it inherits from. The file is an `ExportTraceServiceRequest`, which a collector's `otlpjsonfile` receiver reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ..audit.events import JudgementEvent
from ..audit.state import RunState, TraceState
from .rows import Times, begun, moment, times_of, times_of_judgement

_INTERNAL, _CLIENT = 1, 3
_OK, _ERROR = 1, 2
_FINISH_REASONS = {"eos": "stop", "max_tokens": "length", "error": "error"}
_SCHEMA = "https://opentelemetry.io/schemas/1.37.0"


def request(state: RunState) -> dict[str, Any]:
    """Return the request with all spans of the run. The same run gives the same ids."""
    scope = {"name": "markovian_rsa_mlx"}
    resource = {"attributes": _attributes({"service.name": "markovian-rsa-mlx"})}
    traces = (_trace_span(state, trace) for trace in begun(state))
    spans = [_run_span(state), *traces, *(_judgement_span(state, event) for event in state.judgements)]
    scoped = {"scope": scope, "spans": spans, "schemaUrl": _SCHEMA}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [scoped]}]}


def _run_span(state: RunState) -> dict[str, Any]:
    assert state.start is not None
    end_s = state.end.elapsed_s if state.end is not None else state.elapsed_s
    answer = state.final.final_text if state.final is not None else None
    return {
        "traceId": _trace_id(state),
        "spanId": _span_id(state, ""),
        "name": "invoke_agent markovian-rsa",
        "kind": _INTERNAL,
        **_times(state, 0.0, end_s),
        "attributes": _attributes(
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": "markovian-rsa",
                "gen_ai.agent.id": state.run_id,
                "gen_ai.provider.name": _provider(state),
                "gen_ai.request.model": state.start.model_id,
                "gen_ai.request.seed": state.setup.seed if state.setup is not None else None,
                "gen_ai.usage.input_tokens": state.prompt_tokens,
                "gen_ai.usage.output_tokens": state.reported_tokens,
                "gen_ai.input.messages": _messages("user", state.start.prompt, None),
                "gen_ai.output.messages": None
                if answer is None
                else _messages("assistant", answer, _finish_reason(state.answer_trace)),
                "markovian_rsa.rounds": state.config.rounds,
                "markovian_rsa.population": json.dumps(state.config.population),
                "markovian_rsa.answer": state.selection.answer if state.selection is not None else None,
            }
        ),
        "status": {"code": _OK if state.end is not None else 0},
    }


def _trace_span(state: RunState, trace: TraceState) -> dict[str, Any]:
    assert state.start is not None
    complete, reason = trace.complete, _finish_reason(trace)
    return _chat_span(
        state,
        trace.trace_id,
        times=times_of(state, trace),
        parents=trace.parent_ids,
        prompt=trace.prompt.prompt_text if trace.prompt is not None else state.start.prompt,
        text=complete.text if complete is not None else None,
        reason=reason,
        final=trace.round >= state.config.rounds,
        attributes={
            "gen_ai.request.max_tokens": trace.max_tokens or None,
            "gen_ai.request.seed": trace.seed,
            "gen_ai.usage.input_tokens": trace.prompt_tokens,
            "gen_ai.usage.output_tokens": trace.tokens,
            "markovian_rsa.round": trace.round,
            "markovian_rsa.trace_id": trace.trace_id,
            "markovian_rsa.answer": state.answer(trace) or None,
        },
    )


def _judgement_span(state: RunState, event: JudgementEvent) -> dict[str, Any]:
    return _chat_span(
        state,
        event.name,
        times=times_of_judgement(event),
        parents=event.pair,
        prompt=event.prompt_text,
        text=event.text,
        reason=_FINISH_REASONS[event.finish_reason],
        final=True,
        attributes={
            "gen_ai.request.max_tokens": state.config.final_tokens,
            "gen_ai.request.seed": event.seed,
            "gen_ai.usage.input_tokens": len(event.prompt_token_ids),
            "gen_ai.usage.output_tokens": event.generated_tokens,
            "markovian_rsa.judgement": event.name,
            "markovian_rsa.verdict": event.verdict or None,
        },
    )


def _chat_span(
    state: RunState,
    name: str,
    *,
    times: Times,
    parents: Sequence[str],
    prompt: str,
    text: str | None,
    reason: str | None,
    final: bool,
    attributes: dict[str, Any],
) -> dict[str, Any]:
    """Return the span of a trace or a judgement. `text` is None for one that has not ended."""
    assert state.start is not None
    sampling = state.config.sampling(final)
    read = dict.fromkeys(map(state.origin, parents))
    return {
        "traceId": _trace_id(state),
        "spanId": _span_id(state, name),
        "parentSpanId": _span_id(state, ""),
        "name": f"chat {state.start.model_id}",
        "kind": _CLIENT,
        **_times(state, times.started_s, times.ended_s),
        "attributes": _attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": _provider(state),
                "gen_ai.request.model": state.start.model_id,
                "gen_ai.request.temperature": float(sampling.temperature),
                "gen_ai.request.top_p": float(sampling.top_p),
                "gen_ai.request.top_k": sampling.top_k or None,
                "gen_ai.response.id": f"{state.run_id}-{name}",
                "gen_ai.response.finish_reasons": None if reason is None else [reason],
                "gen_ai.input.messages": _messages("user", prompt, None),
                "gen_ai.output.messages": None if text is None else _messages("assistant", text, reason),
                **attributes,
            }
        ),
        "links": [{"traceId": _trace_id(state), "spanId": _span_id(state, parent)} for parent in read],
        "status": {"code": 0 if text is None else _ERROR if reason == "error" else _OK},
    }


def _finish_reason(trace: TraceState | None) -> str | None:
    complete = trace.complete if trace is not None else None
    return None if complete is None else _FINISH_REASONS[complete.finish_reason]


def _provider(state: RunState) -> str:
    return state.setup.engine if state.setup is not None else "unknown"


def _messages(role: str, text: str, finish_reason: str | None) -> str:
    message: dict[str, Any] = {"role": role, "parts": [{"type": "text", "content": text}]}
    return json.dumps([message | ({"finish_reason": finish_reason} if finish_reason else {})], ensure_ascii=False)


def _times(state: RunState, started_s: float, ended_s: float) -> dict[str, str]:
    names = {"startTimeUnixNano": started_s, "endTimeUnixNano": ended_s}
    return {name: str(round(moment(state, seconds).timestamp() * 1e6) * 1_000) for name, seconds in names.items()}


def _trace_id(state: RunState) -> str:
    return hashlib.sha256(state.run_id.encode("utf-8", "replace")).hexdigest()[:32]


def _span_id(state: RunState, trace_id: str) -> str:
    return hashlib.sha256(f"{state.run_id}/{trace_id}".encode("utf-8", "replace")).hexdigest()[:16]


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the attributes that have a value, in the typed form of OTLP."""
    return [{"key": key, "value": _typed(value)} for key, value in values.items() if value is not None]


def _typed(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list():
            return {"arrayValue": {"values": [_typed(each) for each in value]}}
        case _:
            return {"stringValue": str(value)}
