"""A run as a log of inspect_ai (format version 2): one sample, with a span per round and a model event per trace.

The judgements of a tournament have a span of their own, with a model event each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from ..audit.events import JudgementEvent
from ..audit.state import RunState, TraceState
from .rows import Times, moment, times_of, times_of_judgement

_STOP_REASONS = {"eos": "stop", "max_tokens": "max_tokens", "error": "unknown"}


def log(state: RunState) -> dict[str, Any]:
    """Return the log. The score of its sample is not known, so it has none; inspect_ai can score it."""
    assert state.start is not None
    start, end = state.start, state.end
    elapsed_s = end.elapsed_s if end is not None else state.elapsed_s
    model = f"markovian-rsa/{start.model_id}"
    started, completed = moment(state, 0).isoformat(), moment(state, elapsed_s).isoformat()
    usage = {model: _usage(state.prompt_tokens, state.reported_tokens)}
    return {
        "version": 2,
        "status": "success" if end is not None else "started",
        "eval": {
            "eval_id": state.run_id,
            "run_id": state.run_id,
            "created": started,
            "task": "markovian-rsa",
            "task_id": state.run_id,
            "dataset": {"name": "question", "samples": 1, "sample_ids": [1]},
            "model": model,
            "config": {"epochs": 1},
            "metadata": {"settings": state.config.to_dict(), "quantization": start.quantization},
        },
        "plan": {"name": "markovian-rsa", "config": {"temperature": state.config.temperature}},
        "results": {"total_samples": 1, "completed_samples": int(end is not None)},
        "stats": {"started_at": started, "completed_at": completed, "model_usage": usage},
        "samples": [_sample(state, model, elapsed_s, usage)],
    }


def _sample(state: RunState, model: str, elapsed_s: float, usage: dict[str, Any]) -> dict[str, Any]:
    question = _chat(state)
    answer = state.final.final_text if state.final is not None else ""
    chosen = state.selection.chosen_trace_id if state.selection is not None else None
    return {
        "id": 1,
        "epoch": 1,
        "input": question,
        "target": "",
        "messages": [*question, {"role": "assistant", "content": answer, "source": "generate"}] if answer else question,
        "output": _output(model, answer, _stop_reason(state.answer_trace), None),
        "metadata": {
            "answer": state.selection.answer if state.selection is not None else None,
            "chosen_trace_id": chosen,
            "seed": state.setup.seed if state.setup is not None else None,
        },
        "events": list(_events(state, model)),
        "model_usage": usage,
        "total_time": elapsed_s,
    }


def _events(state: RunState, model: str) -> Iterator[dict[str, Any]]:
    for number, traces in state.rounds():
        begun = [trace for trace in traces if trace.starts]
        events = [(times_of(state, trace), _trace_event(state, trace, model)) for trace in begun]
        yield from _span(state, f"round {number}", events)
    judged = [(times_of_judgement(event), _judgement_event(state, event, model)) for event in state.judgements]
    yield from _span(state, "judgements", judged)


def _span(state: RunState, name: str, events: Sequence[tuple[Times, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield the events between the begin and the end of their span; nothing without events."""
    if not events:
        return
    span_id = name.replace(" ", "-")
    span = {"span_id": span_id}
    begin, end = min(times.started_s for times, _ in events), max(times.ended_s for times, _ in events)
    yield span | _at(state, begin) | {"event": "span_begin", "id": span_id, "name": name}
    for times, event in events:
        ended = {
            "completed": moment(state, times.ended_s).isoformat(),
            "working_time": times.ended_s - times.started_s,
        }
        yield span | _at(state, times.started_s) | event | ended
    yield span | _at(state, end) | {"event": "span_end", "id": span_id}


def _trace_event(state: RunState, trace: TraceState, model: str) -> dict[str, Any]:
    complete, prompt = trace.complete, trace.prompt.prompt_text if trace.prompt is not None else None
    usage = _usage(trace.prompt_tokens, trace.tokens)
    return {
        "event": "model",
        "model": model,
        "role": trace.trace_id,
        "input": _chat(state) if prompt is None else [{"role": "user", "content": prompt}],
        **_request(state, trace.max_tokens or None, trace.seed, final=trace.round >= state.config.rounds),
        "output": _output(model, complete.text if complete is not None else "", _stop_reason(trace), usage),
        "retries": len(trace.retries),
        "metadata": {
            "trace_id": trace.trace_id,
            "parents": list(dict.fromkeys(map(state.origin, trace.parent_ids))),
            "answer": state.answer(trace),
        },
    }


def _judgement_event(state: RunState, event: JudgementEvent, model: str) -> dict[str, Any]:
    usage = _usage(len(event.prompt_token_ids), event.generated_tokens)
    return {
        "event": "model",
        "model": model,
        "role": event.name,
        "input": [{"role": "user", "content": event.prompt_text}],
        **_request(state, state.config.final_tokens, event.seed, final=True),
        "output": _output(model, event.text, _STOP_REASONS[event.finish_reason], usage),
        "retries": event.attempt,
        "metadata": {
            "trace_id": event.name,
            "parents": list(dict.fromkeys(map(state.origin, event.pair))),
            "verdict": event.verdict,
        },
    }


def _request(state: RunState, max_tokens: int | None, seed: int | None, *, final: bool) -> dict[str, Any]:
    """Return the description of a request in a model event."""
    sampling = state.config.sampling(final)
    return {
        "tools": [],
        "tool_choice": "none",
        "config": {
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or None,
            "seed": seed,
        },
    }


def _output(model: str, text: str, reason: str, usage: dict[str, Any] | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "source": "generate"}
    return {
        "model": PurePath(model).name,
        "choices": [{"message": message, "stop_reason": reason}],
        "completion": text,
        "usage": usage,
    }


def _chat(state: RunState) -> list[dict[str, Any]]:
    """Return the chat as plain messages. Calls of tools are part of the text."""
    assert state.start is not None
    if state.setup is None:
        return [{"role": "user", "content": state.start.prompt}]
    return [
        {
            "role": role if (role := message.get("role")) in ("system", "assistant") else "user",
            "content": message.get("content", ""),  # a damaged message may have none
        }
        for message in state.setup.messages
    ]


def _at(state: RunState, seconds: float) -> dict[str, Any]:
    return {"timestamp": moment(state, seconds).isoformat(), "working_start": seconds}


def _stop_reason(trace: TraceState | None) -> str:
    complete = trace.complete if trace is not None else None
    return "unknown" if complete is None else _STOP_REASONS[complete.finish_reason]


def _usage(prompt: int, generated: int) -> dict[str, Any]:
    return {"input_tokens": prompt, "output_tokens": generated, "total_tokens": prompt + generated}
