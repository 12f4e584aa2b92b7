"""Turn a finished run into the completion that clients read. `stream` reports a run in progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from ..audit import RunState, TraceState
from ..audit.events import TraceCompleteEvent
from ..config import FULL
from ..errors import BackendError
from ..method.lineage import TraceKey
from ..method.tails import ParsedTrace, TraceParser
from ..run.result import RunResult
from ..tokenizer import Tokenizer
from ..tools import ToolCall, Tools, call_id
from .errors import RequestError
from .incremental_text import Trimmer
from .logprobs import AnswerLogProbs, TraceValues, chat_logprobs
from .plan import Plan
from .schemas import (
    AnswerMessage,
    Choice,
    ChoiceLogProbs,
    Completion,
    CompletionTokensDetails,
    FinishReason,
    MessageToolCall,
    RSAMetadata,
    TraceDetail,
    Usage,
    Votes,
)


@dataclass(frozen=True)
class ChoiceText:
    """A trace as a choice: its text and its calls.

    `reasoning` is None for a model without thinking, `stop` the text that ended the answer.
    """

    reasoning: str | None
    content: str
    finish_reason: FinishReason
    stop: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class CompletionBuilder:
    """Builds the response to a plan from the result of its run.

    `stopped` is True if a limit ended the run. `choice_ids` are the traces that become choices. With RSA, the chosen
    one is first, and the other final candidates follow. `values` are the log-probabilities of their ids, if asked for.
    """

    def __init__(self, plan: Plan, result: RunResult, tokenizer: Tokenizer, values: TraceValues | None = None) -> None:
        self._plan, self._result, self._tokenizer, self._values = plan, result, tokenizer, values
        self._state = RunState(result.events)
        self._divided: dict[str, ParsedTrace] = {}
        self.stopped = self._state.end is None
        selection = self._state.selection
        if selection is None:
            self.choice_ids = [result.final_trace_id] if result.final_trace_id is not None else []
        elif plan.rsa:
            chosen = selection.chosen_trace_id
            others = [trace_id for trace_id in selection.candidate_trace_ids if trace_id != chosen]
            self.choice_ids = [chosen, *others][: plan.max_choices]
        else:
            self.choice_ids = selection.candidate_trace_ids

    def check(self) -> None:
        """Raise `RequestError` if a choice is missing: an ordinary completion needs all, a run with RSA one."""
        if not self.choice_ids:
            raise RequestError(503, "A limit stopped the run before it had an answer.", "stopped")
        expected = self._plan.config.populations[-1]
        if not self._plan.rsa and len(self.choice_ids) < expected:
            message = f"Only {len(self.choice_ids)} of {expected} choices could be generated."
            raise RequestError(502, message, BackendError.kind)

    def completion(self) -> Completion:
        """Return the whole response. Raise `RequestError` as `check` does."""
        self.check()
        choices = []
        for index, trace_id in enumerate(self.choice_ids):
            text = self.choice_text(trace_id)
            message = AnswerMessage(
                role="assistant",
                content=text.content or (None if text.tool_calls else ""),
                reasoning=text.reasoning,
                reasoning_content=text.reasoning,
            )
            if text.tool_calls:
                message.tool_calls = [MessageToolCall.of(call) for call in text.tool_calls]
            logprobs = self.logprobs(trace_id, len(text.content))
            choice = Choice(index=index, message=message, finish_reason=text.finish_reason, logprobs=logprobs)
            if text.stop is not None:
                choice.stop_reason = text.stop
            choices.append(choice)
        return Completion(
            id=completion_id(self._result.run_id),
            object="chat.completion",
            created=int(time.time()),
            model=self._plan.model,
            choices=choices,
            usage=self.usage(),
            **self.extras(),
        )

    def choice_text(self, trace_id: str) -> ChoiceText:
        """Return the reasoning and the answer of a finished trace."""
        parsed, reader = self._parsed(trace_id), self.reader(trace_id)
        text, calls = reader.read(parsed.answer.strip(), finished=self.finished(trace_id))
        finish: FinishReason = "stop" if reader.stop is not None or self.finished(trace_id) else "length"
        return ChoiceText(
            None if parsed.undivided else parsed.thinking.strip(),
            text,
            "tool_calls" if calls and finish == "stop" else finish,
            reader.stop,
            calls,
        )

    def finished(self, trace_id: str) -> bool:
        """Return True if the trace ended by itself."""
        return self._complete(trace_id).finish_reason == "eos"

    def inherited(self, trace_id: str) -> bool:
        """Return True if the trace was not generated, but has the answer of a parent."""
        return self._state.trace(trace_id).inherited is not None

    def reader(self, trace_id: str) -> AnswerReader:
        """Return what reads the answer of a trace."""
        return AnswerReader(self._plan.request.stops, self._state.tools, f"{self._result.run_id}|{trace_id}")

    def logprobs(self, trace_id: str, characters: int) -> ChoiceLogProbs | None:
        """Return the values of the tokens of an answer that has so many characters, None if there are none."""
        if self._values is None or self._state.setup is None:
            return None
        if self._parsed(trace_id).undivided:
            finder = AnswerLogProbs.of_text(self._tokenizer)
        else:
            finder = AnswerLogProbs.of_run(self._state.setup, self._tokenizer, self._plan.config)
        return chat_logprobs(self._tokenizer, finder.take(self._values[trace_id], characters))

    def usage(self) -> Usage:
        """Return the tokens of all traces, summaries and judgements. A retried prompt counts once.

        The choices of an ordinary completion have one prompt, which counts once, as in OpenAI's protocol.
        """
        prompts, generated = self._state.prompt_tokens, self._result.generated_tokens
        if not self._plan.rsa:
            prompts = self._state.trace(self.choice_ids[0]).prompt_tokens
        answers = 0
        for trace_id in dict.fromkeys(map(self._state.origin, self.choice_ids)):
            parsed = self._parsed(trace_id)
            answers += self._complete(trace_id).generated_tokens
            answers -= 0 if parsed.undivided else len(parsed.thinking_ids)
        return Usage(
            prompt_tokens=prompts,
            completion_tokens=generated,
            total_tokens=prompts + generated,
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=max(0, generated - answers)),
        )

    def _parsed(self, trace_id: str) -> ParsedTrace:
        """Divide a finished trace into its thinking and its answer."""
        if trace_id not in self._divided:
            assert self._state.setup is not None
            parser = TraceParser(self._state.setup, self._tokenizer.decode)
            ids, thinking = self._complete(trace_id).token_ids, self._plan.config.enable_thinking
            self._divided[trace_id] = parser.parse(ids, thinking=thinking, finished=self.finished(trace_id))
        return self._divided[trace_id]

    def _complete(self, trace_id: str) -> TraceCompleteEvent:
        complete = self._state.trace(trace_id).complete
        assert complete is not None
        return complete

    def extras(self) -> dict[str, Any]:
        """Return `rsa_metadata` and `aggregation_prompt`, as far as the request asks for them."""
        request = self._plan.request
        if not self._plan.rsa:
            return {}
        extras: dict[str, Any] = {}
        for_metadata: dict[str, Any] = {}
        if request.return_aggregation_prompt:
            # The user message that the chosen trace answered; None for a trace of round 0.
            prompt, setup = self._state.trace(self._result.final_trace_id).prompt, self._state.setup
            text = None
            if prompt is not None and setup is not None:
                text = prompt.prompt_text.removeprefix(setup.chat_prefix).removesuffix(setup.chat_suffix)
            extras["aggregation_prompt"] = for_metadata["rsa_final_aggregation_prompt"] = text
        if request.return_rsa_metadata is not False:
            extras["rsa_metadata"] = self._metadata(**for_metadata)
        return extras

    def _metadata(self, **extra: Any) -> RSAMetadata:
        config, request, result = self._plan.config, self._plan.request, self._result
        stages: dict[int, list[TraceState]] = {}  # finished traces in the order of rounds and indices
        for key in sorted(map(TraceKey.parse, self._state.traces)):
            if self._state.trace(key).complete:
                stages.setdefault(key.round, []).append(self._state.trace(key))
        warnings = [*self._plan.warnings, *result.warnings]
        if self.stopped:
            warnings.append("A limit stopped the run. This is the best answer so far.")
        if request.rsa_debug:
            extra["rsa_stages"] = [[_detail(trace) for trace in traces] for traces in stages.values()]
        return RSAMetadata(
            rsa_iterations=config.rounds,
            rsa_k=config.aggregation_size,
            rsa_n=config.population if isinstance(config.population, int) else list(config.population),
            rsa_final_n=config.final_count,
            rsa_summarize=config.carry == "summary",
            rsa_tail_window=config.carry == "tail" and config.tail_tokens != FULL,
            tail_window_len=config.tail_limit,
            short_resp_len=config.thinking_tokens,
            use_pacore=config.carry == "answer",
            rsa_max_concurrency=0 if config.concurrency == "auto" else config.concurrency,
            rsa_debug=bool(request.rsa_debug),
            rsa_token_count_history=[
                round(fmean(trace.complete.generated_tokens for trace in traces if trace.complete), 3)
                for traces in stages.values()
            ],
            rsa_selection=result.answer_selection,
            answer_kind=result.answer_kind,
            run_id=result.run_id,
            trail=None if result.audit_path is None else result.audit_path.name,
            seed=result.seed,
            answer=result.answer,
            final_trace_id=result.final_trace_id,
            tally=[Votes(answer=answer, votes=votes) for answer, votes in result.tally],
            round_zero=result.round_zero,
            elapsed_s=round(result.elapsed_s, 3),
            warnings=list(dict.fromkeys(warnings)),
            **extra,
        )


class AnswerReader:
    """Divides a growing answer into its text and its tool calls, and ends it before the first stop text.

    `origin` names the trace: the ids of its calls are derived from it.
    """

    def __init__(self, stops: Sequence[str], tools: Tools | None, origin: str) -> None:
        self._cutter, self._origin = StopCutter(stops), origin
        self._scanner = tools.scanner() if tools is not None else None
        self._trimmer = Trimmer()
        self.count = 0  #: the number of calls so far

    @property
    def stop(self) -> str | None:
        """The stop text that ended the answer."""
        return self._cutter.stop

    def add(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Append a piece of the answer, and return the text and the calls that are certain."""
        text = self._cutter.add(text)
        return (text, ()) if self._scanner is None else self._divided(self._scanner.feed(text))

    def end(self, *, finished: bool) -> tuple[str, tuple[ToolCall, ...]]:
        """Return what was held back. `finished`: the model ended the answer."""
        text = self._cutter.end()
        if self._scanner is None:
            return text, ()
        items = self._scanner.feed(text)
        return self._divided([*items, *self._scanner.end(finished=finished and self.stop is None)])

    def read(self, text: str, *, finished: bool) -> tuple[str, tuple[ToolCall, ...]]:
        """Return the text and the calls of a whole answer."""
        (first, calls), (rest, more) = self.add(text), self.end(finished=finished)
        return first + rest, (*calls, *more)

    def _divided(self, items: Sequence[str | ToolCall]) -> tuple[str, tuple[ToolCall, ...]]:
        text, calls = "", []
        for item in items:
            if isinstance(item, str):
                text += self._trimmer.add(item)
            else:
                calls.append(replace(item, id=call_id(self._origin, self.count)))
                self.count += 1
        return text, tuple(calls)


class StopCutter:
    """Ends a growing text before the first stop text. Text that may begin a stop text is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = stops, ""
        self.stop: str | None = None  #: the stop text that ended the text

    @property
    def found(self) -> bool:
        """Whether the text has ended."""
        return self.stop is not None

    def add(self, text: str) -> str:
        """Append a piece and return the text that is certain."""
        if self.found or not self._stops:
            return "" if self.found else text
        text = self._held + text
        places = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            end, self.stop = min(places)
            self._held = ""
            return text[:end]
        longest = max(map(len, self._stops))
        begins = (
            start
            for start in range(max(0, len(text) - longest + 1), len(text))
            if any(stop.startswith(text[start:]) for stop in self._stops)
        )
        certain = next(begins, len(text))
        self._held = text[certain:]
        return text[:certain]

    def end(self) -> str:
        """Return the text that was held back."""
        text, self._held = self._held, ""
        return text


def completion_id(run_id: str) -> str:
    """Return the id that a run's completion has for clients."""
    return f"chatcmpl-{run_id}"


def _detail(trace: TraceState) -> TraceDetail:
    assert trace.complete is not None
    return TraceDetail(
        trace_id=trace.trace_id,
        seed=trace.seed,
        parents=trace.parent_ids,
        prompt_tokens=trace.prompt_tokens,
        tokens=trace.complete.generated_tokens,
        finish_reason=trace.complete.finish_reason,
        tail_tokens=trace.tail.tail_tokens if trace.tail else 0,
        elapsed_s=trace.complete.elapsed_s,
    )
