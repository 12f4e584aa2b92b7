"""Turn a finished run into the completion that clients read. `stream` reports a run in progress."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..audit import RunState, TraceState
from ..config import FULL
from ..errors import BackendError
from ..method.lineage import TraceKey
from ..method.tails import parse_trace
from ..run.result import RunResult
from ..tokenizer import Tokenizer
from .errors import RequestError
from .plan import Plan
from .schemas import AnswerMessage, Choice, Completion, FinishReason, RSAMetadata, TraceDetail, Usage, Votes


@dataclass(frozen=True)
class ChoiceText:
    """A trace as a choice. `reasoning` is None for a model without thinking."""

    reasoning: str | None
    content: str
    finish_reason: FinishReason


class CompletionBuilder:
    """Builds the response to a plan from the result of its run.

    `stopped` is True if a limit ended the run. `choice_ids` are the traces that become choices. With RSA, the chosen
    one is first, and the other final candidates follow.
    """

    def __init__(self, plan: Plan, result: RunResult, tokenizer: Tokenizer, model: str) -> None:
        self._plan, self._result, self._tokenizer, self._model = plan, result, tokenizer, model
        self._state = RunState(result.events)
        self.stopped = self._state.end is None
        selection = self._state.selection
        if selection is None:
            self.choice_ids = [result.final_trace_id] if result.final_trace_id is not None else []
        elif plan.rsa:
            chosen = selection.chosen_trace_id
            self.choice_ids = [chosen, *(i for i in selection.candidate_trace_ids if i != chosen)]
        else:
            self.choice_ids = selection.candidate_trace_ids

    def check(self) -> None:
        """Raise `RequestError` if a choice is missing: an ordinary completion needs all, a run with RSA one."""
        if not self.choice_ids:
            raise RequestError(503, "A limit stopped the run before it had an answer.", "stopped")
        expected = self._plan.config.population
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
                content=text.content,
                reasoning=text.reasoning,
                reasoning_content=text.reasoning,
            )
            choices.append(Choice(index=index, message=message, finish_reason=text.finish_reason, logprobs=None))
        return Completion(
            id=completion_id(self._result.run_id),
            object="chat.completion",
            created=int(time.time()),
            model=self._model,
            choices=choices,
            usage=self.usage(),
            **self.extras(),
        )

    def choice_text(self, trace_id: str) -> ChoiceText:
        """Return the reasoning and the answer of a finished trace."""
        complete = self._state.trace(trace_id).complete
        assert complete is not None
        decode, markers = self._tokenizer.decode, self._tokenizer.end_of_thinking
        parsed = parse_trace(complete.token_ids, markers, thinking=self._plan.config.enable_thinking)
        return ChoiceText(
            None if parsed.undivided else decode(parsed.thinking_ids).strip(),
            decode(parsed.answer_ids).strip(),
            "stop" if complete.finish_reason == "eos" else "length",
        )

    def usage(self) -> Usage:
        """Return the tokens of all traces and summaries. A retried prompt counts once."""
        traces = self._state.traces.values()
        prompts = sum(_prompt_tokens(trace) for trace in traces)
        prompts += sum(len(trace.summary.prompt_token_ids) for trace in traces if trace.summary)
        generated = self._result.generated_tokens
        return Usage(prompt_tokens=prompts, completion_tokens=generated, total_tokens=prompts + generated)

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
            rsa_n=config.population,
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
            rsa_selection=config.answer_selection,
            run_id=result.run_id,
            trail=None if result.audit_path is None else str(result.audit_path),
            seed=result.seed,
            answer=result.answer,
            final_trace_id=result.final_trace_id,
            tally=[Votes(answer=answer, votes=votes) for answer, votes in result.tally],
            round_zero=result.round_zero,
            elapsed_s=round(result.elapsed_s, 3),
            warnings=list(dict.fromkeys(warnings)),
            **extra,
        )


def completion_id(run_id: str) -> str:
    """Return the id that a run's completion has for clients."""
    return f"chatcmpl-{run_id}"


def _prompt_tokens(trace: TraceState) -> int:
    return trace.starts[-1].prompt_token_count if trace.starts else 0


def _detail(trace: TraceState) -> TraceDetail:
    assert trace.complete is not None
    return TraceDetail(
        trace_id=trace.trace_id,
        seed=trace.seed,
        parents=trace.parent_ids,
        prompt_tokens=_prompt_tokens(trace),
        tokens=trace.complete.generated_tokens,
        finish_reason=trace.complete.finish_reason,
        tail_tokens=trace.tail.tail_tokens if trace.tail else 0,
        elapsed_s=trace.complete.elapsed_s,
    )
