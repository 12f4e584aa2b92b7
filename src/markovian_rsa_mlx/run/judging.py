"""Hold the tournament of a run: ask the model which of two final candidates is right, pair by pair.

`method.tournament` decides who meets whom and who wins. A judgement is one event, recorded at its end. A resumed run
uses the recorded ones and asks for the others, with the same seeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from ..audit.events import AttemptDiscardedEvent, JudgementEvent
from ..backends.base import GenerationRequest, GenerationResult
from ..method.lineage import TraceKey
from ..method.prompts import Prompt
from ..method.tails import Tail, take_tail
from ..method.tournament import (
    MAX_JUDGE_ATTEMPTS,
    Question,
    Tournament,
    full_limit,
    read_verdict,
    shown_sections,
)
from .generation import FATAL, Generator
from .limits import LimitReached
from .result import Trace, candidates_of, kind_of, shows_more
from .session import RunSession

#: Judgements to come that are named to the engine, which may keep what their prompts have in common.
_SIBLINGS = 64

Start = Callable[[Coroutine[Any, Any, JudgementEvent]], asyncio.Task[JudgementEvent]]


class Judging:
    """Judges the final candidates of one session. Use it once."""

    def __init__(self, session: RunSession, generator: Generator) -> None:
        self._session, self._generator = session, generator
        self._control_ids = frozenset(session.setup.control_token_ids)
        self._traces: Mapping[TraceKey, Trace] = {}
        self._shown: dict[tuple[str, bool], Tail] = {}
        self.is_done = session.config.answer_selection != "tournament" or session.log.history.selection is not None

    async def run(self, find_traces: Callable[[], Mapping[TraceKey, Trace]], start: Start) -> None:
        """Ask for all judgements of the tournament. `start` makes the task of one. Do nothing under another rule."""
        if self.is_done:
            return
        session, self._traces = self._session, (traces := find_traces())
        known = {(event.number, event.full, event.order): event for event in session.log.history.judgements}
        finals = session.lineage.finals
        self._kind = kind_of(session.config, traces, finals, session.tools)
        candidates = candidates_of(
            traces, kind=self._kind, rules=session.setup.answer_rules, keys=finals, tools=session.tools
        )
        tournament = Tournament(session.setup.seed, candidates, self._kind)
        while questions := tournament.open_questions():
            missing = [q for q in questions if (q.number, q.full, q.order) not in known]
            tasks = [start(self._judge(question, len(missing) - 1 - place)) for place, question in enumerate(missing)]
            if tasks:
                await asyncio.wait(tasks)
            known |= {(event.number, event.full, event.order): event for event in (task.result() for task in tasks)}
            for question in questions:
                event = known[question.number, question.full, question.order]
                tournament.add(question, event.verdict, more=shows_more(event, traces))
        self.is_done = True

    async def _judge(self, question: Question, siblings: int) -> JudgementEvent:
        """Ask for one judgement, in up to `max_retries` + 1 attempts, and record it. Raise fatal errors."""
        session = self._session
        a, b = (self._tail(trace_id, question.full) for trace_id in question.pair)
        prompt = session.prompts.judgement(a, b)
        attempts = range(min(session.config.max_retries + 1, MAX_JUDGE_ATTEMPTS))
        for attempt in attempts:
            request = self._request(question, prompt, attempt, siblings)
            listener = _Listener(self, question, attempt)
            try:
                async with self._generator.slots:
                    return self._record(
                        question,
                        (a, b),
                        request=request,
                        attempt=attempt,
                        listener=listener,
                        result=await self._ask(request, listener),
                    )
            except (*FATAL, LimitReached):
                raise
            except Exception as error:  # an engine may raise anything, and another seed may succeed
                session.log.record_error("judgement", f"{question}: {type(error).__name__}: {error}")
        session.warnings.append(f"the judgement {question} of {' and '.join(question.pair)} failed: it has no verdict")
        return self._record(question, (a, b), request=request, attempt=attempts[-1], listener=listener, result=None)

    def _request(self, question: Question, prompt: Prompt, attempt: int, siblings: int) -> GenerationRequest:
        session, config = self._session, self._session.config
        return GenerationRequest(
            trace_id=str(question),
            messages=session.prompts.messages(prompt),
            prompt_token_ids=prompt.token_ids,
            max_tokens=config.final_tokens,
            seed=question.seed(session.setup.seed, attempt),
            sampling=config.sampling(final=True),
            run_id=session.log.run_id,
            prompt_text=prompt.text,
            enable_thinking=config.enable_thinking,
            thinking_limit=self._generator.thinking_limit(config.rounds),
            thinking_marks=config.thinking_marks,
            interactive=session.interactive,
            shared_lengths=prompt.tail_starts[:1] * min(siblings, _SIBLINGS),
        )

    async def _ask(self, request: GenerationRequest, listener: _Listener) -> GenerationResult:
        """Generate, and count the tokens. Raise `LimitReached` if other generations have used up a limit."""
        limits = self._session.limits
        limits.check()
        try:
            result = await self._session.engine.generate(request, listener)
            listener.tokens(result.token_ids[listener.reported :])
            listener.ended_s = limits.check(apart_from=listener.drawn)
        except FATAL:
            raise
        except BaseException:  # the run stops here, or the attempt failed: its tokens count
            listener.stopped()
            raise
        return result

    def _record(
        self,
        question: Question,
        shown: tuple[Tail, Tail],
        *,
        request: GenerationRequest,
        attempt: int,
        listener: _Listener,
        result: GenerationResult | None,
    ) -> JudgementEvent:
        """Record a judgement. Without a result all attempts have failed, and it has no verdict."""
        session, ids = self._session, list(result.token_ids) if result else []
        finished = result is not None and result.finish_reason == "eos"
        parsed = session.parser.parse(ids, thinking=session.config.enable_thinking, finished=finished)
        event = session.log.record(
            JudgementEvent,
            round=question.round,
            number=question.number,
            order=question.order,
            full=question.full,
            pair=list(question.pair),
            attempt=attempt,
            seed=request.seed,
            shown_token_ids=[list(tail.token_ids) for tail in shown],
            shown_texts=[tail.text for tail in shown],
            prompt_text=request.prompt_text,
            prompt_token_ids=list(request.prompt_token_ids),
            text=session.parser.text(ids),
            token_ids=ids,
            generated_tokens=listener.drawn if result else 0,
            closed_at=listener.closed_at if result else None,
            finish_reason=result.finish_reason if result else "error",
            verdict=read_verdict(parsed.answer) if result else "",
            started_s=listener.started_s if result else session.limits.elapsed_s,
            elapsed_s=listener.ended_s - listener.started_s if result else 0.0,
        )
        session.log.sync()
        return event

    def _tail(self, trace_id: str, full: bool) -> Tail:
        """Return what the judge sees of a candidate."""
        place = (trace_id, full)
        if place not in self._shown:
            self._shown[place] = self._cut(self._traces[TraceKey.parse(trace_id)], full)
        return self._shown[place]

    def _cut(self, trace: Trace, full: bool) -> Tail:
        config, decode = self._session.config, self._session.engine.tokenizer.decode
        sections = {"thinking": trace.parsed.thinking_ids, "answer": trace.parsed.answer_ids}
        if full:
            limit = full_limit(config.tail_limit, config.final_tokens)
            return take_tail(sections["answer"], limit, self._control_ids, decode)
        first, second = shown_sections(self._kind)
        tail = take_tail(sections[first], config.tail_limit, self._control_ids, decode)
        if tail.text.strip():
            return tail
        return take_tail(sections[second], config.tail_limit, self._control_ids, decode)


class _Listener:
    """Counts the tokens of one attempt at a judgement, and keeps its times and where its thinking was closed."""

    def __init__(self, judging: Judging, question: Question, attempt: int) -> None:
        self._session, self._question, self._attempt = judging._session, question, attempt
        self.reported = self.closing = 0  #: numbers of ids: those that the engine reported, and closing ids of them
        self.closed_at: int | None = None
        self.started_s = self.ended_s = 0.0

    @property
    def drawn(self) -> int:
        """The number of generated ids."""
        return self.reported - self.closing

    def started(self) -> None:
        """Note the time. Raise `LimitReached` if a limit is reached."""
        self.started_s = self._session.limits.check()

    def tokens(self, ids: Sequence[int]) -> None:
        """Count new ids."""
        self.reported += len(ids)
        self._session.limits.add_tokens(len(ids))

    def thinking_closed(self, closing_ids: Sequence[int]) -> None:
        """Note where the thinking was closed. Closing ids were not generated."""
        self.closed_at, self.closing = self.reported, len(closing_ids)
        self.reported += len(closing_ids)

    def stopped(self) -> None:
        """Record how many tokens an attempt without a result generated."""
        if self.drawn:
            self._session.log.record(
                AttemptDiscardedEvent,
                purpose="judgement",
                name=str(self._question),
                attempt=self._attempt,
                generated_tokens=self.drawn,
            )

    def warning(self, message: str) -> None:
        """Record an engine warning as a recoverable error."""
        self._session.log.record_error("judgement", f"{self._question}: {message}")
