"""The events of an audit trail: one typed, mutable dataclass for each kind of line.

The first nine are a contract with other programs (names, fields and order are fixed); the further ones are
this project's. The text beside a field is its documentation: `audit.schema` makes section 2 of the design
document, with its JSON Schema, out of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from ..config import RSAConfig

FinishReason = Literal["eos", "max_tokens", "error"]
AnswerSelection = Literal["single", "majority", "final_aggregation"]

RunId = Annotated[str, "The run; the same on every line of a file."]
Round = Annotated[int, "Round t of the trace, from 0."]
TraceId = Annotated[str, "The trace: r{t}-{i:02d}, round t and index i."]


@dataclass
class Event:
    """`EVENT_NAME` comes first and is no argument of `__init__`."""

    EVENT_NAME: str = field(init=False, default="")

    def to_dict(self) -> dict[str, Any]:
        """`{"event": EVENT_NAME, ...}`, then the fields in order; an `RSAConfig` becomes a plain dict."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "EVENT_NAME"}
        plain = {k: v.to_dict() if isinstance(v, RSAConfig) else v for k, v in values.items()}
        return {"event": self.EVENT_NAME, **plain}


#: The former name, which other programs use.
_BaseEvent = Event


@dataclass
class RunStartEvent(Event):
    """A run begins; always the first line."""

    EVENT_NAME: str = field(init=False, default="run_start")
    run_id: RunId
    model_id: Annotated[str, "The model: a hub id, a folder, or the name a server gives it."]
    quantization: Annotated[str, 'How the weights are quantised, such as "4-bit", or "none".']
    config: Annotated[RSAConfig, "All settings of the run, as asked for."]
    prompt: Annotated[str, "The question: the last user message of the chat."]
    created_at: Annotated[str, "When the run began: ISO 8601, UTC."]


@dataclass
class GenerationStartEvent(Event):
    """A trace got its row in the engine. A retry starts again, with a new seed; a resumed trace with its own."""

    EVENT_NAME: str = field(init=False, default="generation_start")
    run_id: RunId
    round: Round
    trace_id: TraceId
    seed: Annotated[int, "Seed of this attempt's random stream; distinct within the run, below 2^31."]
    prompt_token_count: Annotated[int, "Tokens of the prompt."]
    max_tokens: Annotated[int, "Decode budget of the trace, in tokens."]
    parent_trace_ids: Annotated[list[str], "Traces whose tails the prompt shows, in its order; empty in round 0."]


@dataclass
class TraceCompleteEvent(Event):
    """A trace is finished, or given up ("error")."""

    EVENT_NAME: str = field(init=False, default="trace_complete")
    run_id: RunId
    round: Round
    trace_id: TraceId
    text: Annotated[str, "Text of the ids, without EOS."]
    token_ids: Annotated[list[int], "All generated ids, EOS included."]
    generated_tokens: Annotated[int, "Their number."]
    finish_reason: Annotated[FinishReason, "Stopped by itself, cut by its budget, or given up."]
    elapsed_s: Annotated[float, "Seconds from the start of the trace's generation in this sitting."]


@dataclass
class TailExtractedEvent(Event):
    """What is carried forward of a trace (by `carry`: its tail, its answer section or its summary)."""

    EVENT_NAME: str = field(init=False, default="tail_extracted")
    run_id: RunId
    round: Round
    trace_id: TraceId
    tail_token_ids: Annotated[list[int], "The carried ids, control ids left out; at most tau."]
    tail_text: Annotated[str, "Their text, raw (a prompt may quote lines of it)."]
    tail_tokens: Annotated[int, "Their number."]


@dataclass
class AggregationPromptEvent(Event):
    """The prompt of a trace of round t >= 1."""

    EVENT_NAME: str = field(init=False, default="aggregation_prompt")
    run_id: RunId
    round: Round
    trace_id: TraceId
    selected_tail_trace_ids: Annotated[list[str], "Traces whose tails it shows, in this order."]
    prompt_text: Annotated[str, "The prompt as text, chat frame included."]
    prompt_token_ids: Annotated[list[int], "The prompt as the model reads it: segments' ids with the tails' between."]


@dataclass
class RoundCompleteEvent(Event):
    """The last needed trace of a round is finished or given up."""

    EVENT_NAME: str = field(init=False, default="round_complete")
    run_id: RunId
    round: Annotated[int, "The round, from 0."]
    trace_ids: Annotated[list[str], "The needed traces of the round, in index order."]
    memory_estimate_bytes: Annotated[int, "The engine's estimate for weights and caches, the largest so far."]
    elapsed_s: Annotated[float, "Seconds since the round's first start in this sitting."]


@dataclass
class FinalEvent(Event):
    """The choice."""

    EVENT_NAME: str = field(init=False, default="final")
    run_id: RunId
    final_trace_id: Annotated[str, "The trace that speaks for the run."]
    final_text: Annotated[str, "Its text after the thinking (all of it where the model has no markers)."]
    all_final_trace_ids: Annotated[list[str], "The final candidates, in index order."]
    answer_selection: Annotated[AnswerSelection, "How it was chosen."]


@dataclass
class ModelStatsEvent(Event):
    """What the model counted of itself, between `final` and `run_end`; only of a model that has counters."""

    EVENT_NAME: str = field(init=False, default="model_stats")
    run_id: RunId
    stats: Annotated[
        dict[str, Any],
        "What the model's routers chose in the last sitting, prompts and other runs of the engine included: "
        "`counts` (layers by experts, the last place the skip), `tokens` (of the layer with most), `skipped` and "
        "`skipped_by_layer` (shares of 1), `busiest_by_layer` (load of the busiest expert, 1 where all are used "
        "alike), `unused_experts` (over all layers).",
    ]


@dataclass
class RunEndEvent(Event):
    """The run is finished; always the last line of a finished run."""

    EVENT_NAME: str = field(init=False, default="run_end")
    run_id: RunId
    elapsed_s: Annotated[float, "Seconds over all sittings."]
    total_generated_tokens: Annotated[int, "Generated tokens of all traces and summaries (paper, eq. 24)."]
    peak_memory_bytes: Annotated[int, "The most memory the engine used in the last sitting; 0 where that is a server."]


@dataclass
class ErrorEvent(Event):
    """Something went wrong."""

    EVENT_NAME: str = field(init=False, default="error")
    run_id: RunId
    stage: Annotated[
        str,
        "Where: `generation` (a trace was given up), `summary`, `upstream` (a call to a server failed and is made "
        "again, within the same attempt; or it read a prompt's text as other ids), `identical_traces`, or `run`.",
    ]
    message: Annotated[str, "What, in a sentence."]
    recoverable: Annotated[bool, "Whether the run goes on or can be resumed."]


@dataclass
class RunSetupEvent(Event):
    """All that prompts and tails are derived from; always the second line."""

    EVENT_NAME: str = field(init=False, default="run_setup")
    run_id: RunId
    seed: Annotated[int, "The run's seed: the setting's, or drawn where that was unset."]
    messages: Annotated[list[dict[str, str]], "The chat: objects with `role` and `content`."]
    prompt_text: Annotated[str, "Round 0's prompt as text."]
    prompt_token_ids: Annotated[list[int], "Round 0's prompt as the model reads it."]
    template_name: Annotated[str, "The aggregation template's name or path."]
    template_source: Annotated[str, "Its Jinja2 source."]
    chat_prefix: Annotated[str, "What the chat template puts before the last user message."]
    chat_suffix: Annotated[str, "What it puts after it, up to where the assistant begins."]
    segments: Annotated[list[list[str]], "At k - 1: the k + 1 static texts of a prompt with k attempts."]
    segment_token_ids: Annotated[list[list[list[int]]], "Their ids, in the same places."]
    quote_token_ids: Annotated[list[int], 'Ids of the quote "> ".']
    summary_source: Annotated[str, "The summary template's Jinja2 source; empty unless `carry` is summary."]
    summary_segments: Annotated[list[str], "The two static texts around a trace's reasoning, else empty."]
    summary_segment_token_ids: Annotated[list[list[int]], "Their ids."]
    end_of_thinking: Annotated[list[list[int]], "Id sequences that end the reasoning; empty: no markers."]
    end_of_thinking_texts: Annotated[list[str], "Their texts, in the same order."]
    eos_token_ids: Annotated[list[int], "Ids that end a trace."]
    control_token_ids: Annotated[list[int], "Ids that never enter a tail."]
    package_version: Annotated[str, "Version of this package."]
    lineage_version: Annotated[int, "Version of the lineage hash (design document, section 1)."]
    engine: Annotated[
        str,
        "The engine's name; a server's begins with `upstream/` where it tells token ids, with `upstream-text/` where "
        "the tokenizer makes them of its texts.",
    ]
    engine_version: Annotated[str, "Its version; of a server also how it reads prompts, and whether it gets the seeds."]
    dtype: Annotated[str, "Number type of the computation."]
    context_length: Annotated[int | None, "The model's context in tokens; null: unknown."]
    max_rows: Annotated[int | None, "Traces decoded at once; null: the engine's own choice."]
    memory_limit_bytes: Annotated[int | None, "Bound on weights and caches; null: none known."]


@dataclass
class TraceCheckpointEvent(Event):
    """Ids generated since the last checkpoint of this attempt, so that a crash loses little."""

    EVENT_NAME: str = field(init=False, default="trace_checkpoint")
    run_id: RunId
    round: Round
    trace_id: TraceId
    attempt: Annotated[int, "The attempt, from 0."]
    position: Annotated[int, "How many ids of the attempt stand before these."]
    token_ids: Annotated[list[int], "The new ids."]


@dataclass
class TraceClockEvent(Event):
    """A generation got its row in the engine, or left it, be it done or not: so idle rows can be seen."""

    EVENT_NAME: str = field(init=False, default="trace_clock")
    run_id: RunId
    round: Round
    trace_id: TraceId
    purpose: Annotated[Literal["trace", "summary"], "What is generated: the trace, or its summary."]
    attempt: Annotated[int, "The attempt, from 0."]
    phase: Annotated[Literal["started", "ended"], "Whether it got its row or left it."]
    elapsed_s: Annotated[float, "Seconds of the run by then, over all sittings; they never run backwards."]


@dataclass
class TraceRetryEvent(Event):
    """An attempt at a trace (or at its summary) failed and another follows."""

    EVENT_NAME: str = field(init=False, default="trace_retry")
    run_id: RunId
    round: Round
    trace_id: TraceId
    purpose: Annotated[Literal["trace", "summary"], "What is tried again."]
    attempt: Annotated[int, "The attempt that follows."]
    seed: Annotated[int, "Its seed."]
    message: Annotated[str, "Why the one before failed."]


@dataclass
class RunResumedEvent(Event):
    """A further sitting begins. Only the settings here may differ from the run's."""

    EVENT_NAME: str = field(init=False, default="run_resumed")
    run_id: RunId
    created_at: Annotated[str, "When it began: ISO 8601, UTC."]
    package_version: Annotated[str, "Version of this package."]
    concurrency: Annotated[int | Literal["auto"], "Traces decoded at once, from here on."]
    memory_limit_gb: Annotated[float | None, "Bound on weights and caches in 1e9 bytes, from here on."]
    max_retries: Annotated[int, "Further attempts at a trace that failed, from here on."]
    token_budget: Annotated[int | None, "Generated tokens after which the run stops, over all sittings."]
    time_budget_s: Annotated[float | None, "Seconds after which the run stops, over all sittings."]
    elapsed_before_s: Annotated[float, "Seconds of the sittings before, as far as the file tells."]
    dropped_bytes: Annotated[int, "Length of the torn last line that was cut off."]


@dataclass
class SummaryCompleteEvent(Event):
    """A trace's summary (carry `summary`): a further generation, counted in the totals."""

    EVENT_NAME: str = field(init=False, default="summary_complete")
    run_id: RunId
    round: Round
    trace_id: Annotated[str, "The trace that is summarised."]
    seed: Annotated[int, "Seed of this attempt at the summary."]
    prompt_text: Annotated[str, "The prompt as text."]
    prompt_token_ids: Annotated[list[int], "The prompt as the model reads it."]
    text: Annotated[str, "Text of the ids, without EOS."]
    token_ids: Annotated[list[int], "All generated ids, EOS included; at most tau."]
    generated_tokens: Annotated[int, "Their number."]
    finish_reason: Annotated[FinishReason, "Stopped by itself, cut by its budget, or given up."]
    elapsed_s: Annotated[float, "Seconds from the start of its generation."]


@dataclass
class SelectionEvent(Event):
    """How the answer was chosen; precedes `final`."""

    EVENT_NAME: str = field(init=False, default="selection")
    run_id: RunId
    answer_selection: Annotated[AnswerSelection, "The rule."]
    candidate_trace_ids: Annotated[list[str], "The candidates, in index order."]
    answers: Annotated[list[str], 'Their extracted answers ("" for none), in the same order.']
    classes: Annotated[list[list[str]], "Traces with equivalent answers, the class's first member first."]
    tally: Annotated[list[int], "Sizes of the classes."]
    tie: Annotated[bool, "Whether another class is as large as the winner's."]
    chosen_trace_id: Annotated[str, "The trace that speaks for the run."]
    answer: Annotated[str, "Its answer."]
    equivalence: Annotated[str, "The rule by which answers are equal."]
    round_zero: Annotated[dict[str, Any], "The free vote over round 0: `traces` (how many), `answer`, `votes`."]


EVENT_TYPES: dict[str, type[Event]] = {
    event_type.EVENT_NAME: event_type
    for event_type in (
        RunStartEvent,
        RunSetupEvent,
        RunResumedEvent,
        GenerationStartEvent,
        TraceClockEvent,
        TraceCheckpointEvent,
        TraceRetryEvent,
        TraceCompleteEvent,
        SummaryCompleteEvent,
        TailExtractedEvent,
        AggregationPromptEvent,
        RoundCompleteEvent,
        SelectionEvent,
        FinalEvent,
        ModelStatsEvent,
        RunEndEvent,
        ErrorEvent,
    )
}
