"""Check the judgements of a tournament: who meets whom, what the judge sees, and what it says."""

from __future__ import annotations

import itertools
import re
from typing import Literal

from ...method.answers import AnswerKind
from ...method.lineage import TraceKey
from ...method.prompts import PromptBuilder, marker_lines, pair_segments, quote_markers, recorded_frame
from ...method.selection import Candidate
from ...method.tails import Tail
from ...method.tournament import (
    MAX_JUDGE_ATTEMPTS,
    Question,
    Tournament,
    full_limit,
    has_more,
    read_verdict,
    shown_sections,
)
from ..events import AttemptDiscardedEvent, ErrorEvent, JudgementEvent
from . import times
from .generations import check_generation, check_once, split
from .order import check_all_settled
from .selection import possible_answer_texts, possible_answers, possible_kinds
from .setup import is_spliced, quotes_in
from .state import VerifierState, Violation, check
from .tails import Source, check_cut, may_be_blank, source_of

_ERROR = re.compile(r"(j\d{2,}f?-[01]): .", re.DOTALL)


def check_judgement(state: VerifierState, event: JudgementEvent) -> None:
    """Check that a judgement is one of those that come next, its prompt, its generation and its verdict."""
    tournament = tournament_of(state)
    question = _question(tournament, event)
    state.session.judged.append((event.started_s, event.started_s + event.elapsed_s))
    most = min(state.session.max_retries + 1, MAX_JUDGE_ATTEMPTS)
    check(0 <= event.attempt < most, f"attempt {event.attempt} is above the last, {most - 1}")
    seed = question.seed(state.setup.seed, event.attempt)
    check(event.seed == seed, f"the seed of {question}, attempt {event.attempt}, is {seed}, not {event.seed}")
    check(len(event.shown_token_ids) == len(event.shown_texts) == 2, "it does not show two attempts")
    for trace_id, ids, text in zip(event.pair, event.shown_token_ids, event.shown_texts, strict=True):
        _check_shown(state, TraceKey.parse(trace_id), ids=ids, text=text, kind=tournament.kind, full=event.full)
    _check_prompt(state, event)
    _check_generation(state, event, question)


def add_judgement(state: VerifierState, event: JudgementEvent) -> None:
    """Add a judgement that was checked to the tournament."""
    tournament = tournament_of(state)
    texts = [_section(state, TraceKey.parse(trace_id), "answer")[1] for trace_id in event.pair]
    more = has_more(event.shown_texts, texts)
    tournament.add(_question(tournament, event), event.verdict, more=more)


def tournament_of(state: VerifierState) -> Tournament:
    """Return the tournament so far. Make it once all traces are settled, which must be so."""
    if state.tournament is None:
        check(state.run.config.answer_selection == "tournament", "the settings want no tournament")
        check(not state.is_older, "earlier versions knew no tournament")
        check_all_settled(state)
        finals = state.succeeded(state.lineage.finals)
        kinds = possible_kinds(state, finals)
        check(len(kinds) == 1, "the texts leave open how answers are compared")
        kind = next(iter(kinds))
        state.tournament = Tournament(state.setup.seed, [_candidate(state, key, kind) for key in finals], kind)
    return state.tournament


def check_finished(state: VerifierState) -> dict[str, float]:
    """Check that no judgement is missing when the answer is chosen. Return the points of the candidates."""
    tournament = tournament_of(state)
    missing = tournament.open_questions()
    check(not missing, f"{len(missing)} judgements are missing, the first is {missing[:1]}")
    _check_concurrency(state)
    return tournament.points


def check_judgement_error(state: VerifierState, event: ErrorEvent) -> None:
    """Check that the error is about a judgement that may be asked for."""
    match = _ERROR.match(event.message)
    check(event.recoverable, "this version records recoverable errors only")
    if match is None:
        raise Violation("no message of the stage judgement")
    known = map(str, tournament_of(state).open_questions())
    check(match[1] in known, f"{match[1]} is not asked for")


def check_discarded(state: VerifierState, event: AttemptDiscardedEvent) -> None:
    """Check that an attempt is one at a judgement that may be asked for, and can have made these tokens."""
    check(event.name in map(str, tournament_of(state).open_questions()), f"{event.name} is not asked for")
    most = min(state.session.max_retries + 1, MAX_JUDGE_ATTEMPTS)
    check(event.attempt < most, f"attempt {event.attempt} is above the last, {most - 1}")
    check_once(state, event, state.run.config.final_tokens)


def _candidate(state: VerifierState, key: TraceKey, kind: AnswerKind) -> Candidate:
    found = possible_answers(state, key, kind)
    if found is None or len(found) != 1:
        raise Violation(f"the text of {key} leaves open what its answer is")
    return Candidate.of(str(key), found[0], finished=state.finished(key).finish_reason == "eos")


def _answer_text(state: VerifierState, key: TraceKey) -> str:
    texts = possible_answer_texts(state, key)
    check(texts is not None and len(texts) == 1, f"the text of {key} leaves open what its answer is")
    return texts[0] if texts else ""


def _section(state: VerifierState, key: TraceKey, part: Literal["thinking", "answer"]) -> tuple[Source, str]:
    """Return a section of a candidate, which many judgements show, and the text of its answer."""
    known: tuple[Source, str] | None = state.sections.get((key, part))
    if known is None:
        known = state.sections[key, part] = source_of(state, state.finished(key), part), _answer_text(state, key)
    return known


def _question(tournament: Tournament, event: JudgementEvent) -> Question:
    """Return the open question that a judgement answers."""
    place = (event.number, event.round, tuple(event.pair), event.order, event.full)
    questions = tournament.open_questions()
    for question in questions:
        if place == (question.number, question.round, question.pair, question.order, question.full):
            return question
    expected = ", ".join(f"{question} of {' and '.join(question.pair)}" for question in questions[:2])
    raise Violation(f"it is not one of the next judgements: {expected or 'none is left'}")


def _check_shown(
    state: VerifierState, key: TraceKey, *, ids: list[int], text: str, kind: AnswerKind, full: bool
) -> None:
    """Check what the judge sees of a candidate: the end of its answer section in full, or its tail."""
    config = state.run.config
    if full:
        limit = full_limit(config.tail_limit, config.final_tokens)
        check_cut(state, ids, text, source=_section(state, key, "answer")[0], limit=limit)
        return
    first, second = (_section(state, key, section)[0] for section in shown_sections(kind))
    try:
        check(text.strip(), f"a blank tail of {key}")
        check_cut(state, ids, text, source=first, limit=config.tail_limit)
    except Violation:
        blank = may_be_blank(state, first)
        check(blank, f"the tail of {key} is not the last {config.tail_limit} ids of what is shown")
        check_cut(state, ids, text, source=second, limit=config.tail_limit)


def _check_prompt(state: VerifierState, event: JudgementEvent) -> None:
    """Check that the prompt shows the two attempts in the template."""
    setup, pieces = state.setup, state.setup.judge_segments
    markers = marker_lines(pieces)
    quoted = [quote_markers(text, markers) for text in event.shown_texts]
    text = pieces[0] + "".join(tail + piece for tail, piece in zip(quoted, pieces[1:], strict=True))
    check(event.prompt_text == text, "prompt_text is not the template around the attempts")
    spliced = is_spliced(
        event.prompt_token_ids,
        pieces=setup.judge_segment_token_ids,
        tails=event.shown_token_ids,
        quote=setup.quote_token_ids,
        quotes=[quotes_in(now) - quotes_in(tail) for now, tail in zip(quoted, event.shown_texts, strict=True)],
    )
    check(spliced, "prompt_token_ids are not the segments' ids with those of the attempts between")
    if state.tokenizer is not None:
        segments = pair_segments(pieces, setup.judge_segment_token_ids, setup.quote_token_ids)
        tails = zip(event.shown_token_ids, event.shown_texts, strict=True)
        builder = PromptBuilder(state.tokenizer, segments, recorded_frame(setup))
        prompt = builder.build([Tail(tuple(ids), text) for ids, text in tails])
        check(list(prompt.token_ids) == event.prompt_token_ids, "prompt_token_ids are not the tokenizer's")


def _check_generation(state: VerifierState, event: JudgementEvent, question: Question) -> None:
    """Check the ids of a judgement, its verdict and its times. One that failed has none, after an error."""
    times.check_judgement(state, event)
    if event.finish_reason == "error":
        empty = not (event.text or event.token_ids or event.generated_tokens or event.elapsed_s or event.verdict)
        check(empty and event.closed_at is None, "a failed judgement has no text, no ids, no verdict and no time")
        error = state.previous
        explained = isinstance(error, ErrorEvent) and error.message.startswith(f"{question}: ")
        check(explained and error.stage == "judgement", "an error event must explain why it failed")  # type: ignore[union-attr]
        most = min(state.session.max_retries + 1, MAX_JUDGE_ATTEMPTS)
        check(event.attempt == most - 1, f"it failed before its last attempt, {most - 1}")
        return
    closing = state.setup.closing_token_ids if event.closed_at is not None else []
    check_generation(state, event, state.run.config.final_tokens, len(closing))
    _check_closing(state, event)
    verdict = read_verdict(split(state, event).answer)
    check(event.verdict == verdict, f"the verdict is {verdict!r}, not {event.verdict!r}")


def _check_closing(state: VerifierState, event: JudgementEvent) -> None:
    """Check that the thinking was closed where the settings name it, if it was open there, and only then."""
    setup, config, ids = state.setup, state.run.config, event.token_ids
    position = config.close_thinking_at(config.rounds, len(setup.closing_token_ids))
    if event.closed_at is None:
        if position is not None and len(ids) > position:
            check(not state.parser.is_open(ids[:position]), f"nothing closes the thinking after {position} ids")
        return
    check(event.closed_at == position, f"thinking is closed after {position} ids, not after {event.closed_at}")
    found = ids[event.closed_at : event.closed_at + len(setup.closing_token_ids)]
    check(found == setup.closing_token_ids, f"the closing ids are {setup.closing_token_ids}")
    is_open = state.parser.is_open(ids[: event.closed_at])
    check(is_open is not False, "the thinking has ended before")
    if is_open is None:
        state.trust("whether the thinking was open where it was closed (its end is part of other tokens)")


def _check_concurrency(state: VerifierState) -> None:
    """Check how many judgements of this session were in the engine at the same time."""
    limit = state.session.concurrency
    if limit == "auto":
        return
    spans = [(start, end) for start, end in state.session.judged if end > start]
    changes = sorted([(end, -1) for _, end in spans] + [(start, 1) for start, _ in spans])
    most = max(itertools.accumulate(change for _, change in changes), default=0)
    check(most <= int(limit), f"{most} judgements were in the engine at the same time, more than {limit}")
