"""The events of an audit trail: one typed, mutable dataclass per kind of line.

The first nine are a contract with other programs: their names, fields and order are fixed. The annotation of a field is
its documentation. `audit.schema` generates section 2 of the design document and the JSON Schema from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from ..config import RSAConfig

FinishReason = Literal["eos", "max_tokens", "error"]
AnswerSelection = Literal["single", "majority", "final_aggregation", "tournament"]
AnswerLevel = Literal["call", "boxed", "announced", "weak", "none"]

#: Marks a number that is never above 0. Others are never below it.
NOT_POSITIVE = "not positive"

RunId = Annotated[str, "The run; the same on every line of a file."]
Round = Annotated[int, "Round t of the trace, from 0."]
TraceId = Annotated[str, "The trace: r{t}-{i:02d}, round t and index i."]


@dataclass
class Event:
    """The base of all events. `EVENT_NAME` comes first and is not an argument of `__init__`."""

    EVENT_NAME: str = field(init=False, default="")

    def to_dict(self) -> dict[str, Any]:
        """Return `{"event": EVENT_NAME, ...}` with the fields in order and an `RSAConfig` as a plain dict."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "EVENT_NAME"}
        plain = {k: v.to_dict() if isinstance(v, RSAConfig) else v for k, v in values.items()}
        return {"event": self.EVENT_NAME, **plain}


#: The former name, which other programs use.
_BaseEvent = Event


@dataclass
class RunStartEvent(Event):
    """A run starts. Always the first line."""

    EVENT_NAME: str = field(init=False, default="run_start")
    run_id: RunId
    model_id: Annotated[str, "The model: a hub id, a folder, or its name on a server."]
    quantization: Annotated[str, 'How the weights are quantised, such as "4-bit", or "none".']
    config: Annotated[RSAConfig, "All settings of the run, as requested."]
    prompt: Annotated[str, "The question: the last user message of the chat."]
    created_at: Annotated[str, "Time of the start: ISO 8601, UTC."]


@dataclass
class GenerationStartEvent(Event):
    """The engine starts a trace. A retry starts again with a new seed, a resumed trace with its own seed."""

    EVENT_NAME: str = field(init=False, default="generation_start")
    run_id: RunId
    round: Round
    trace_id: TraceId
    seed: Annotated[int, "Seed of this attempt, distinct within the run, below 2^31."]
    prompt_token_count: Annotated[int, "Tokens of the prompt."]
    max_tokens: Annotated[int, "Most tokens that the trace may generate."]
    parent_trace_ids: Annotated[list[str], "Traces whose tails the prompt shows, in this order; empty in round 0."]


@dataclass
class TraceCompleteEvent(Event):
    """A trace is finished, or has failed ("error")."""

    EVENT_NAME: str = field(init=False, default="trace_complete")
    run_id: RunId
    round: Round
    trace_id: TraceId
    text: Annotated[str, "Text of the ids, without EOS."]
    token_ids: Annotated[list[int], "All ids, with EOS and with those of `thinking_closed`."]
    generated_tokens: Annotated[int, "Their number without those of `thinking_closed`."]
    finish_reason: Annotated[FinishReason, "Ended by itself, truncated at `max_tokens`, or failed."]
    elapsed_s: Annotated[float, "Seconds from the start of its generation in this session."]


@dataclass
class TraceConfidenceEvent(Event):
    """How sure the model was of the trace that the line before completes (`trace_confidence` of the settings).

    Both figures are natural logarithms of probabilities of drawn ids in the model's own distribution: before the
    temperature, the filters (top-p, top-k, min-p) and a grammar. The ids of `thinking_closed` do not count. Absent for
    a trace some of whose probabilities are not known, as from most servers, or where a session ended before this line.
    """

    EVENT_NAME: str = field(init=False, default="trace_confidence")
    run_id: RunId
    round: Round
    trace_id: TraceId
    mean_logprob: Annotated[float, "Mean over the drawn ids; at most 0.", NOT_POSITIVE]
    lowest_window_logprob: Annotated[
        float, "Lowest mean over 256 consecutive drawn ids; `mean_logprob` of a shorter trace.", NOT_POSITIVE
    ]


@dataclass
class TailExtractedEvent(Event):
    """The part of a trace that is carried forward: by `carry`, its tail, its answer section or its summary."""

    EVENT_NAME: str = field(init=False, default="tail_extracted")
    run_id: RunId
    round: Round
    trace_id: TraceId
    tail_token_ids: Annotated[list[int], "The ids carried forward, without control ids; at most tau."]
    tail_text: Annotated[str, "Their text, without the quotes that a prompt may add."]
    tail_tokens: Annotated[int, "Their number."]


@dataclass
class AggregationPromptEvent(Event):
    """The prompt of a trace of round t >= 1."""

    EVENT_NAME: str = field(init=False, default="aggregation_prompt")
    run_id: RunId
    round: Round
    trace_id: TraceId
    selected_tail_trace_ids: Annotated[list[str], "Traces whose tails it shows, in this order."]
    prompt_text: Annotated[str, "The prompt as text, with the chat frame."]
    prompt_token_ids: Annotated[
        list[int], "The prompt as the model reads it: the ids of the segments with those of the tails between them."
    ]


@dataclass
class TraceInheritedEvent(Event):
    """A trace is not generated, since all its parents finished with equal answers (`early_stop` is agreement).

    Its text, answer and tail are those of its lowest parent. It costs no tokens, and no other line follows for it.
    """

    EVENT_NAME: str = field(init=False, default="trace_inherited")
    run_id: RunId
    round: Round
    trace_id: TraceId
    from_trace_id: Annotated[str, "The parent with the lowest index."]
    answer: Annotated[str, "The answer of that parent."]
    verdicts: Annotated[
        list[list[str]],
        "The comparisons that needed computer algebra, as [parent, parent, `same`], in the order of the prompt.",
    ]


@dataclass
class AnswersComparedEvent(Event):
    """Computer algebra compared answers, and the run goes on: parents differ, or a vote is open (`early_stop`).

    Such a comparison has a time limit, so a later one may find something else. A resumed run uses the recorded one.
    """

    EVENT_NAME: str = field(init=False, default="answers_compared")
    run_id: RunId
    round: Round
    trace_id: Annotated[
        str, "Agreement: the trace that is generated, since its parents differ. Posterior: the last candidate counted."
    ]
    verdicts: Annotated[
        list[list[str]],
        "The comparisons, as [trace, trace, verdict]: `same`, `different`, or `undecided` (which counts as different). "
        "Agreement: of the parents in the order of the prompt, up to the first that is not `same`.",
    ]


@dataclass
class StoppedEarlyEvent(Event):
    """The vote over the final candidates is decided (`early_stop` is posterior). No generation starts after it.

    The answers of the first final candidates decided it, in index order, whatever had finished besides. Traces in the
    engine are cancelled. They may still record checkpoints, and their tokens count in the total of the run.
    """

    EVENT_NAME: str = field(init=False, default="stopped_early")
    run_id: RunId
    round: Annotated[int, "The final round."]
    counts: Annotated[list[int], "The votes of each class of answers so far, in the order of their first members."]
    probability: Annotated[float, "Probability that the largest class stays the largest one."]
    cancelled_trace_ids: Annotated[
        list[str], "The other final candidates, which do not vote, and all needed traces that had not ended, in order."
    ]
    verdicts: Annotated[
        list[list[str]],
        "The comparisons that needed computer algebra, as [trace, trace, verdict]: `same`, `different`, or `undecided` "
        "(which counts as different, in the selection too). Earlier versions left out the last ones.",
    ]


@dataclass
class RoundCompleteEvent(Event):
    """All needed traces of a round have finished or failed."""

    EVENT_NAME: str = field(init=False, default="round_complete")
    run_id: RunId
    round: Annotated[int, "The round, from 0."]
    trace_ids: Annotated[list[str], "The needed traces of the round, in index order."]
    memory_estimate_bytes: Annotated[int, "The engine's largest estimate for weights and caches so far."]
    elapsed_s: Annotated[float, "Seconds since the first start of the round in this session."]


@dataclass
class FinalEvent(Event):
    """The chosen answer."""

    EVENT_NAME: str = field(init=False, default="final")
    run_id: RunId
    final_trace_id: Annotated[str, "The trace whose answer is the answer of the run."]
    final_text: Annotated[str, "Its text after the thinking, or all of it if the model has no markers."]
    all_final_trace_ids: Annotated[list[str], "The final candidates, in index order."]
    answer_selection: Annotated[AnswerSelection, "The rule of the choice."]


@dataclass
class ModelStatsEvent(Event):
    """Counters of a model that has them, recorded between `final` and `run_end`."""

    EVENT_NAME: str = field(init=False, default="model_stats")
    run_id: RunId
    stats: Annotated[
        dict[str, Any],
        "Choices of the model's routers in the last session, with prompts and other runs of the engine: "
        "`counts` (layers by experts, the skip last), `tokens` (of the layer with most), `skipped` and "
        "`skipped_by_layer` (shares of 1), `busiest_by_layer` (load of the busiest expert, 1 where all are used "
        "alike), `unused_experts` (over all layers).",
    ]


@dataclass
class RunEndEvent(Event):
    """The run is finished. Always the last line of a finished run."""

    EVENT_NAME: str = field(init=False, default="run_end")
    run_id: RunId
    elapsed_s: Annotated[float, "Seconds over all sessions."]
    total_generated_tokens: Annotated[int, "Generated tokens of all traces, summaries and judgements (paper, eq. 24)."]
    peak_memory_bytes: Annotated[int, "Peak memory of the engine in the last session; 0 for a server."]


@dataclass
class ErrorEvent(Event):
    """An error."""

    EVENT_NAME: str = field(init=False, default="error")
    run_id: RunId
    stage: Annotated[
        str,
        "Where: `generation` (a trace failed), `summary`, `judgement` (an attempt at one failed, or its request is "
        "sent again), `upstream` (a request to a server failed and is sent again in the same attempt, or the server "
        "read a prompt's text as other ids), `identical_traces`, or `run`.",
    ]
    message: Annotated[str, "The error, in a sentence."]
    recoverable: Annotated[bool, "Whether the run continues or can be resumed."]


@dataclass
class RunSetupEvent(Event):
    """Everything that prompts and tails are derived from. Always the second line."""

    EVENT_NAME: str = field(init=False, default="run_setup")
    run_id: RunId
    seed: Annotated[int, "The seed of the run: that of the settings, or a random one."]
    messages: Annotated[
        list[dict[str, str]],
        "The chat: objects with `role` and `content`; with `tool_calls` (the JSON text of a list) for calls of tools, "
        "and `tool_call_id` and `name` for results.",
    ]
    prompt_text: Annotated[str, "Round 0's prompt as text."]
    prompt_token_ids: Annotated[list[int], "Round 0's prompt as the model reads it."]
    template_name: Annotated[str, "The aggregation template's name or path."]
    template_source: Annotated[str, "Its Jinja2 source."]
    chat_prefix: Annotated[str, "The text that the chat template puts before the last user message."]
    chat_suffix: Annotated[str, "The text that it puts after that message, up to the start of the reply."]
    segments: Annotated[list[list[str]], "At k - 1: the k + 1 static texts of a prompt with k attempts."]
    segment_token_ids: Annotated[list[list[list[int]]], "Their ids, in the same places."]
    quote_token_ids: Annotated[list[int], 'Ids of the quote "> ".']
    summary_source: Annotated[str, "The summary template's Jinja2 source; empty unless `carry` is summary."]
    summary_segments: Annotated[
        list[str], "The two static texts around the reasoning of a trace; empty unless `carry` is summary."
    ]
    summary_segment_token_ids: Annotated[list[list[int]], "Their ids."]
    end_of_thinking: Annotated[list[list[int]], "Id sequences that end the reasoning; empty if the model has none."]
    end_of_thinking_texts: Annotated[list[str], "Their texts, in the same order."]
    eos_token_ids: Annotated[list[int], "Ids that end a trace."]
    control_token_ids: Annotated[list[int], "Ids that never enter a tail."]
    package_version: Annotated[str, "Version of this package."]
    lineage_version: Annotated[int, "Version of the lineage hash (design document, section 1)."]
    engine: Annotated[
        str,
        "Name of the engine. For a server it starts with `upstream/` if the server returns token ids, and with "
        "`upstream-text/` if the tokenizer makes them from its texts.",
    ]
    engine_version: Annotated[
        str, "Its version; for a server also how it reads prompts, and whether it gets the seeds."
    ]
    dtype: Annotated[str, "Number type of the computation."]
    context_length: Annotated[int | None, "Context length of the model in tokens; null if unknown."]
    max_rows: Annotated[int | None, "Most traces decoded concurrently; null if the engine decides."]
    memory_limit_bytes: Annotated[int | None, "Limit for weights and caches; null if unknown."]
    answer_rules: Annotated[
        int, "Version of the rules by which answers are found and compared; 1 in files of versions without this field."
    ] = 1
    tokenizer: Annotated[str, "Where the tokenizer was read: a folder, a hub id or a file; empty if unknown."] = ""
    tokenizer_digest: Annotated[str, "SHA-256 of the tokenizer's files and EOS ids; empty if unknown."] = ""
    closing_token_ids: Annotated[
        list[int], "Ids that close unfinished thinking; empty if the model or the engine cannot, or no trace needs it."
    ] = field(default_factory=list)
    thinking_marks: Annotated[
        dict[str, Any],
        "The marks around the thinking: `begin` and `end` (texts), `tokens` (ids of the parts that are tokens of their "
        "own), `channels` (whether they are harmony's), `wrappers` (pairs of marks around an answer), `expected` "
        "(whether text without marks is thinking) and `closing` (the text that ends the thinking). Empty for a model "
        "without marks, and in older files, where `end_of_thinking` alone decides.",
    ] = field(default_factory=dict)
    frame_texts: Annotated[
        dict[str, list[list[list[int]]]],
        "Where the texts of earlier messages are in `chat_prefix` and in `chat_suffix` (`chat`), and in the frame of "
        "summaries (`summary`): beginnings and ends. Only the rest of a frame is parsed for special tokens. Empty in "
        "older files, where all of a prompt was. `round_zero` has those in round 0's prompt, if results of calls "
        "follow the question.",
    ] = field(default_factory=dict)
    tools: Annotated[
        list[dict[str, Any]], "The tools that the answer may call, in the form of OpenAI's protocol. Empty: none."
    ] = field(default_factory=list)
    tool_form: Annotated[
        dict[str, Any],
        "How the model writes calls: `parser` (generic, zaya_xml, or the name of one of mlx-lm's), `begin` and `end` "
        "(texts of the marks), `tokens` (ids of marks that are tokens of their own; a trace's text shows them, and no "
        "tail has them), `choice` (auto or required) and `parallel` (whether an answer may have several calls). Empty "
        "without tools.",
    ] = field(default_factory=dict)
    kv_bits: Annotated[int | None, "Bits of a number in a quantized KV cache; null if it is not quantized."] = None
    response_schema: Annotated[
        dict[str, Any] | None,
        "The JSON Schema that binds the answers of the final candidates, and of the final aggregation; null for none.",
    ] = None
    model_digest: Annotated[
        str,
        "Identifies the weights and the files next to them: the first 16 hex digits of the SHA-256 of small files and "
        "of samples of large ones, followed by ` with ` and the digest of an adapter that all traces used. Empty for a "
        "model on a server, and absent in older files.",
    ] = ""
    judge_segments: Annotated[
        list[str],
        "The three static texts around the two attempts of a judgement (template `judge_v1`); empty unless "
        "`answer_selection` is tournament.",
    ] = field(default_factory=list)
    judge_segment_token_ids: Annotated[list[list[int]], "Their ids."] = field(default_factory=list)
    adapter_digest: Annotated[
        str, "SHA-256 of the adapter that traces of rounds >= 1 use (`aggregation_adapter`); empty without one."
    ] = ""


@dataclass
class TraceCheckpointEvent(Event):
    """The ids generated since the last checkpoint of this attempt, so that a crash loses few."""

    EVENT_NAME: str = field(init=False, default="trace_checkpoint")
    run_id: RunId
    round: Round
    trace_id: TraceId
    attempt: Annotated[int, "The attempt, from 0."]
    position: Annotated[int, "Number of ids of the attempt before these."]
    token_ids: Annotated[list[int], "The new ids."]


@dataclass
class ThinkingClosedEvent(Event):
    """The run, not the model, ended the thinking of a final trace, to leave `answer_tokens` for its answer.

    Precedes the checkpoint and the `trace_complete` that hold these ids. The next drawn token follows them.
    """

    EVENT_NAME: str = field(init=False, default="thinking_closed")
    run_id: RunId
    round: Round
    trace_id: TraceId
    attempt: Annotated[int, "The attempt, from 0."]
    position: Annotated[int, "Number of ids of the attempt before these: all generated, all in checkpoints."]
    token_ids: Annotated[list[int], "The ids put there: `closing_token_ids` of `run_setup`."]


@dataclass
class TraceClockEvent(Event):
    """A generation entered the engine or left it, finished or not. Shows idle capacity."""

    EVENT_NAME: str = field(init=False, default="trace_clock")
    run_id: RunId
    round: Round
    trace_id: TraceId
    purpose: Annotated[Literal["trace", "summary"], "The trace itself, or its summary."]
    attempt: Annotated[int, "The attempt, from 0."]
    phase: Annotated[Literal["started", "ended"], "Whether it entered the engine or left it."]
    elapsed_s: Annotated[float, "Seconds of the run so far, over all sessions; never decreasing."]
    steps: Annotated[
        int | None,
        "Decode steps that gave the ids of this session, if a finished generation left an engine that counts them.",
    ] = None
    drafted: Annotated[int | None, "Ids that the engine guessed in these steps, in addition to one draw each."] = None
    accepted: Annotated[int | None, "Guessed ids that equalled their draws: the steps and these are all ids."] = None


@dataclass
class TraceRetryEvent(Event):
    """An attempt at a trace or at its summary failed, and another one follows."""

    EVENT_NAME: str = field(init=False, default="trace_retry")
    run_id: RunId
    round: Round
    trace_id: TraceId
    purpose: Annotated[Literal["trace", "summary"], "The trace itself, or its summary."]
    attempt: Annotated[int, "The next attempt."]
    seed: Annotated[int, "Its seed."]
    message: Annotated[str, "Why the attempt before failed."]


@dataclass
class RunResumedEvent(Event):
    """A further session starts. Only these settings may differ from those of the run."""

    EVENT_NAME: str = field(init=False, default="run_resumed")
    run_id: RunId
    created_at: Annotated[str, "Time of its start: ISO 8601, UTC."]
    package_version: Annotated[str, "Version of this package."]
    concurrency: Annotated[int | Literal["auto"], "Most traces decoded concurrently, from here on."]
    memory_limit_gb: Annotated[float | None, "Limit for weights and caches in 1e9 bytes, from here on."]
    max_retries: Annotated[int, "Further attempts at a failed trace, from here on."]
    token_budget: Annotated[int | None, "Generated tokens after which the run stops, over all sessions."]
    time_budget_s: Annotated[float | None, "Seconds after which the run stops, over all sessions."]
    elapsed_before_s: Annotated[float, "Seconds of the earlier sessions, as far as the file shows."]
    dropped_bytes: Annotated[int, "Length of the torn last line that was removed."]


@dataclass
class SummaryCompleteEvent(Event):
    """The summary of a trace (`carry` is summary): a generation of its own, counted in the totals."""

    EVENT_NAME: str = field(init=False, default="summary_complete")
    run_id: RunId
    round: Round
    trace_id: Annotated[str, "The trace that is summarised."]
    seed: Annotated[int, "Seed of this attempt at the summary."]
    prompt_text: Annotated[str, "The prompt as text."]
    prompt_token_ids: Annotated[list[int], "The prompt as the model reads it."]
    text: Annotated[str, "Text of the ids, without EOS."]
    token_ids: Annotated[list[int], "All generated ids, with EOS; at most tau."]
    generated_tokens: Annotated[int, "Their number."]
    finish_reason: Annotated[FinishReason, "Ended by itself, truncated at `max_tokens`, or failed."]
    elapsed_s: Annotated[float, "Seconds from the start of its generation."]


@dataclass
class JudgementEvent(Event):
    """The model compared two final candidates (`answer_selection` is tournament): a generation, counted in the totals.

    The pairs follow from the seed and the verdicts before. Each pair is judged in both orders, and once more in both,
    in full, if the tails leave it a draw. No trace is generated after the first judgement.
    """

    EVENT_NAME: str = field(init=False, default="judgement")
    run_id: RunId
    round: Annotated[int, "Round of the tournament, from 1."]
    number: Annotated[int, "Number of the pair in the run, from 0."]
    order: Annotated[int, "0, or 1 for the pair in the other order."]
    full: Annotated[bool, "Whether the answers are shown up to twice tau, after the tails left the pair a draw."]
    pair: Annotated[list[str], "The two traces as the prompt shows them, attempt A and attempt B."]
    attempt: Annotated[int, "The attempt at this judgement that succeeded, from 0, or the last one."]
    seed: Annotated[int, "Its seed, distinct within the run, below 2^31."]
    shown_token_ids: Annotated[list[list[int]], "For each of the two, the ids that the prompt shows, without quotes."]
    shown_texts: Annotated[list[str], "Their texts."]
    prompt_text: Annotated[str, "The prompt as text, with the chat frame."]
    prompt_token_ids: Annotated[list[int], "The prompt as the model reads it."]
    text: Annotated[str, "Text of the generated ids, without EOS."]
    token_ids: Annotated[list[int], "All ids, with EOS and with those that close the thinking."]
    generated_tokens: Annotated[int, "Their number without those that close the thinking."]
    closed_at: Annotated[int | None, "Number of ids before `closing_token_ids`, if the run closed the thinking."]
    finish_reason: Annotated[FinishReason, "Ended by itself, truncated at `final_tokens`, or failed."]
    verdict: Annotated[Literal["A", "B", ""], "The attempt that the box in the answer names, or nothing."]
    started_s: Annotated[float, "Seconds of the run, over all sessions, at which it entered the engine."]
    elapsed_s: Annotated[float, "Seconds in the engine."]

    @property
    def name(self) -> str:
        """A name like `j03-1`, or `j03f-1` for one in full: the pair and the order."""
        return f"j{self.number:02d}{'f' if self.full else ''}-{self.order}"


@dataclass
class AttemptDiscardedEvent(Event):
    """An attempt at a summary or at a judgement failed, or its session stopped, and its tokens are not recorded.

    Their number counts against `token_budget`, and not in the total of the run. An attempt at a trace has checkpoints.
    """

    EVENT_NAME: str = field(init=False, default="attempt_discarded")
    run_id: RunId
    purpose: Annotated[Literal["summary", "judgement"], "What was generated."]
    name: Annotated[str, "The trace that was to be summarised, or the judgement: `j03-1`, or `j03f-1` for one in full."]
    attempt: Annotated[int, "The attempt, from 0. One that its session stopped is made again."]
    generated_tokens: Annotated[int, "Tokens that it generated, at least 1."]


@dataclass
class SelectionEvent(Event):
    """How the answer was chosen. Precedes `final`."""

    EVENT_NAME: str = field(init=False, default="selection")
    run_id: RunId
    answer_selection: Annotated[AnswerSelection, "The rule."]
    candidate_trace_ids: Annotated[list[str], "The candidates, in index order."]
    answers: Annotated[list[str], 'Their answers ("" for none), in the same order; open: their texts.']
    classes: Annotated[list[list[str]], "Classes of traces with equivalent answers, each in order of its members."]
    tally: Annotated[list[int], "Sizes of the classes."]
    tie: Annotated[bool, "Whether another class has as many members as the winner's."]
    chosen_trace_id: Annotated[str, "The trace whose answer is the answer of the run."]
    answer: Annotated[str, "Its answer; open: the whole text after its thinking."]
    equivalence: Annotated[
        str,
        "How answers were compared: `math` by value, `text` as text, `json` as canonical JSON, `open` not at all "
        "(`auto` is one of these).",
    ]
    round_zero: Annotated[dict[str, Any], "The baseline vote over round 0: `traces` (their number), `answer`, `votes`."]
    levels: Annotated[
        list[AnswerLevel],
        "How each candidate's text marks its answer, in the same order; the classes hold the strongest level that "
        "occurs. Empty in files of earlier versions.",
    ] = field(default_factory=list)
    verdicts: Annotated[
        list[list[str]],
        "The comparisons of both votes that needed computer algebra, as [trace, trace, verdict]: `same` or "
        "`different`. A pair that is not listed and that no rule decides had no verdict within the time limit, and "
        "counts as different. Empty in files of earlier versions.",
    ] = field(default_factory=list)
    requested_selection: Annotated[
        AnswerSelection | None, "The rule of the settings, if it could not be used: open answers have no majority."
    ] = None
    points: Annotated[
        list[float | None],
        "Each candidate's points in the tournament, in the same order: 1 for a win, a half for a draw or a round "
        "without a partner. Null for one that was not judged. Empty under another rule.",
    ] = field(default_factory=list)


EVENT_TYPES: dict[str, type[Event]] = {
    event_type.EVENT_NAME: event_type
    for event_type in (
        RunStartEvent,
        RunSetupEvent,
        RunResumedEvent,
        GenerationStartEvent,
        TraceClockEvent,
        TraceCheckpointEvent,
        ThinkingClosedEvent,
        TraceRetryEvent,
        TraceCompleteEvent,
        TraceConfidenceEvent,
        SummaryCompleteEvent,
        TailExtractedEvent,
        AggregationPromptEvent,
        TraceInheritedEvent,
        AnswersComparedEvent,
        StoppedEarlyEvent,
        RoundCompleteEvent,
        JudgementEvent,
        AttemptDiscardedEvent,
        SelectionEvent,
        FinalEvent,
        ModelStatsEvent,
        RunEndEvent,
        ErrorEvent,
    )
}
