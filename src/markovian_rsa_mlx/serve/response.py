"""From a run's events to the completion that clients read.

Knows finished runs; what is said while they go on is in `stream`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..audit import RunState, TraceState
from ..config import FULL
from ..errors import BackendError
from ..method.lineage import TraceKey
from ..method.tails import split_thinking
from ..run.result import RunResult
from ..tokenizer import Tokenizer
from .errors import RequestError
from .plan import Plan
from .schemas import AnswerMessage, Choice, Completion, FinishReason, RSAMetadata, TraceDetail, Usage, Votes

_STOPPED = "A budget stopped the run; this is the best so far."


@dataclass(frozen=True)
class ParsedTrace:
    """What one trace says to a reader: its parts around the end of thinking."""

    reasoning: str | None
    content: str
    finish_reason: FinishReason


class CompletionBuilder:
    """A finished run as the protocol tells it."""

    def __init__(self, plan: Plan, result: RunResult, tokenizer: Tokenizer, model: str) -> None:
        self.plan, self.result, self.tokenizer, self.model = plan, result, tokenizer, model
        self.history = RunState(result.events)
        self.created = int(time.time())

    @property
    def id(self) -> str:
        return completion_id(self.result.run_id)

    @property
    def stopped(self) -> bool:
        """Whether a budget ended the run, so that this is the best of what there was."""
        return self.history.end is None

    def choice_ids(self) -> list[str]:
        """The traces that are the choices: of RSA the chosen one first, then the other final candidates."""
        selection, chosen = self.history.selection, self.result.final_trace_id
        if selection is None:
            return [chosen] if chosen is not None else []
        finals = selection.candidate_trace_ids
        if self.plan.rsa:
            return [selection.chosen_trace_id, *(i for i in finals if i != selection.chosen_trace_id)]
        return finals

    def spoken(self, trace_id: str) -> ParsedTrace:
        """The parts of a finished trace."""
        complete = self.history.trace(trace_id).complete
        assert complete is not None
        thinking, markers = self.plan.config.enable_thinking, self.tokenizer.end_of_thinking
        stopped = complete.finish_reason == "eos"
        split = split_thinking(complete.token_ids, markers, stopped=stopped, thinking=thinking)
        reasons = bool(markers) and split.reasoning_ids != split.answer_ids
        return ParsedTrace(
            self.tokenizer.decode(split.reasoning_ids).strip() if reasons else None,
            self.tokenizer.decode(split.answer_ids).strip(),
            "stop" if stopped else "length",
        )

    def completion(self) -> Completion:
        """The whole answer. Raises `RequestError` where not every choice that was asked for came about."""
        self.check()
        choices = []
        for index, trace_id in enumerate(self.choice_ids()):
            spoken = self.spoken(trace_id)
            message = AnswerMessage(
                role="assistant",
                content=spoken.content,
                reasoning=spoken.reasoning,
                reasoning_content=spoken.reasoning,
            )
            choices.append(Choice(index=index, message=message, finish_reason=spoken.finish_reason, logprobs=None))
        return Completion(
            id=self.id,
            object="chat.completion",
            created=self.created,
            model=self.model,
            choices=choices,
            usage=self.usage(),
            **self.extras(),
        )

    def check(self) -> None:
        """An ordinary completion owes as many choices as were asked for; any answer owes one."""
        ids = self.choice_ids()
        if not ids:
            raise RequestError(503, "The run was stopped by a budget before anything was answered.", "stopped")
        if not self.plan.rsa and len(ids) < self.plan.config.population:
            raise RequestError(
                502, f"Only {len(ids)} of {self.plan.config.population} choices could be generated.", BackendError.kind
            )

    def usage(self) -> Usage:
        """Summed over all traces and summaries, retries aside."""
        traces = self.history.traces.values()
        prompts = sum(_prompt_tokens(trace) for trace in traces)
        summaries = sum(len(trace.summary.prompt_token_ids) for trace in traces if trace.summary)
        read, generated = prompts + summaries, self.result.generated_tokens
        return Usage(prompt_tokens=read, completion_tokens=generated, total_tokens=read + generated)

    def extras(self) -> dict[str, Any]:
        """`rsa_metadata` and `aggregation_prompt`, as far as they are wanted."""
        if not self.plan.rsa:
            return {}
        wanted = self.plan.asked.return_aggregation_prompt
        found: dict[str, Any] = {"aggregation_prompt": self.aggregation_prompt()} if wanted else {}
        if self.plan.asked.return_rsa_metadata is not False:
            found["rsa_metadata"] = self.metadata()
        return found

    def aggregation_prompt(self) -> str | None:
        """The user message that the chosen trace answered; None in round 0."""
        prompt = self.history.trace(self.result.final_trace_id).prompt
        setup = self.history.setup
        if prompt is None or setup is None:
            return None
        return prompt.prompt_text.removeprefix(setup.chat_prefix).removesuffix(setup.chat_suffix)

    def metadata(self) -> RSAMetadata:
        config, asked, result = self.plan.config, self.plan.asked, self.result
        extra: dict[str, Any] = {}
        if asked.return_aggregation_prompt:
            extra["rsa_final_aggregation_prompt"] = self.aggregation_prompt()
        if asked.rsa_debug:
            extra["rsa_stages"] = [[_detail(trace) for trace in stage] for stage in self._stages()]
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
            rsa_debug=bool(asked.rsa_debug),
            rsa_token_count_history=[round(_mean_tokens(stage), 3) for stage in self._stages()],
            rsa_selection=config.answer_selection,
            run_id=result.run_id,
            trail=None if result.audit_path is None else str(result.audit_path),
            seed=result.seed,
            answer=result.answer,
            final_trace_id=result.final_trace_id,
            tally=[Votes(answer=answer, votes=votes) for answer, votes in result.tally],
            round_zero=result.round_zero,
            elapsed_s=round(result.elapsed_s, 3),
            warnings=list(
                dict.fromkeys([*self.plan.warnings, *result.warnings, *([_STOPPED] if self.stopped else [])])
            ),
            **extra,
        )

    def _stages(self) -> list[list[TraceState]]:
        """The finished traces, by stage of generation and in index order."""
        finished = {TraceKey.parse(i): trace for i, trace in self.history.traces.items() if trace.complete}
        last = max((key.round for key in finished), default=-1)
        return [[finished[key] for key in sorted(finished) if key.round == t] for t in range(last + 1)]


def completion_id(run_id: str) -> str:
    """What clients know a run's answer by."""
    return f"chatcmpl-{run_id}"


def _prompt_tokens(trace: TraceState) -> int:
    return trace.starts[-1].prompt_token_count if trace.starts else 0


def _mean_tokens(stage: Sequence[TraceState]) -> float:
    return fmean(trace.complete.generated_tokens for trace in stage if trace.complete) if stage else 0.0


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
