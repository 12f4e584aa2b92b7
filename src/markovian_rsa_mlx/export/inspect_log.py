"""A run as a log of inspect_ai (format version 2): one sample, with a span per round and a model event per trace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from ..audit.state import RunState, TraceState
from .rows import moment, times_of

_STOP_REASONS = {"eos": "stop", "max_tokens": "max_tokens", "error": "unknown"}


def log(state: RunState) -> dict[str, Any]:
    """Return the log. The score of its sample is not known, so it has none; inspect_ai can score it."""
    assert state.start is not None
    start, end = state.start, state.end
    elapsed_s = end.elapsed_s if end is not None else state.elapsed_s
    model = f"markovian-rsa/{start.model_id}"
    started, completed = moment(state, 0).isoformat(), moment(state, elapsed_s).isoformat()
    usage = {model: _usage(state.prompt_tokens, state.generated_tokens)}
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
        traces = [trace for trace in traces if trace.starts]
        if not traces:
            continue
        times = [times_of(state, trace) for trace in traces]
        span = {"span_id": f"round-{number}"}
        begin = min(time.started_s for time in times)
        yield span | _at(state, begin) | {"event": "span_begin", "id": f"round-{number}", "name": f"round {number}"}
        for trace, time in zip(traces, times, strict=True):
            yield (
                span
                | _at(state, time.started_s)
                | _model_event(state, trace, model)
                | {
                    "completed": moment(state, time.ended_s).isoformat(),
                    "working_time": time.ended_s - time.started_s,
                }
            )
        yield span | _at(state, max(time.ended_s for time in times)) | {"event": "span_end", "id": f"round-{number}"}


def _model_event(state: RunState, trace: TraceState, model: str) -> dict[str, Any]:
    complete, sampling = trace.complete, state.config.sampling(trace.round >= state.config.rounds)
    prompt = trace.prompt.prompt_text if trace.prompt is not None else None
    usage = _usage(trace.prompt_tokens, trace.tokens)
    return {
        "event": "model",
        "model": model,
        "role": trace.trace_id,
        "input": _chat(state) if prompt is None else [{"role": "user", "content": prompt}],
        "tools": [],
        "tool_choice": "none",
        "config": {
            "max_tokens": trace.max_tokens or None,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or None,
            "seed": trace.seed,
        },
        "output": _output(model, complete.text if complete is not None else "", _stop_reason(trace), usage),
        "retries": len(trace.retries),
        "metadata": {"trace_id": trace.trace_id, "parents": trace.parent_ids, "answer": state.answer(trace)},
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
