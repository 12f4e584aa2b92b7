"""The costs and the score of a run with a tournament, from its audit log."""

from __future__ import annotations

from markovian_rsa_mlx.audit import RunState
from markovian_rsa_mlx.audit.events import JudgementEvent, RunEndEvent, SelectionEvent
from markovian_rsa_mlx.bench.generation_cache import GenerationCache
from markovian_rsa_mlx.bench.results import RunRecord
from markovian_rsa_mlx.bench.scoring import AnswerScorer, measure
from markovian_rsa_mlx.cli.estimate import decode_work
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.predict.lengths import LogNormal
from markovian_rsa_mlx.predict.workload import PromptShape, workload
from tests.run.test_tournament import JUDGED, model
from tests.support.fakes import FakeEngine
from tests.support.runs import of, run


def test_the_judgements_count_in_tokens_and_the_winner_in_the_score() -> None:
    events = run(FakeEngine(model), JUDGED).events
    state, cache = RunState(events), GenerationCache()
    (end,), (selection,) = of(events, RunEndEvent), of(events, SelectionEvent)
    assert cache.add_run(state) == end.total_generated_tokens
    assert cache.add_run(state) == 0
    record = RunRecord(index=0, problem_id="0", epoch=1, seed=1, trail="")
    scorer = AnswerScorer(lambda answer: float(answer == max(selection.answers)))
    measured = measure(record, state, kind="math", equivalent=equal_text, scorer=scorer, cache=cache)
    assert measured.correct == 1
    assert measured.answer == selection.answer
    assert measured.generated_tokens == end.total_generated_tokens
    assert all(cache.trace_times(state)[event.name] is not None for event in of(events, JudgementEvent))


def test_plans_and_simulations_have_the_judgements() -> None:
    plain = JUDGED.replace(answer_selection="single")
    more = decode_work(JUDGED).tokens - decode_work(plain).tokens
    assert more == 4 * 3 * 3 * JUDGED.final_tokens
    shape = PromptShape(30, 25, ((40, 20), (40, 5, 20)), judge=(40, 5, 20))
    lengths = LogNormal(50, 0.5)
    judged = [g for g in workload(JUDGED, 1, shape=shape, lengths=lengths) if g.name.startswith("judgement")]
    assert len(judged) == 2 * 3 * 3
    assert len(workload(plain, 1, shape=shape, lengths=lengths)) + len(judged) == len(
        workload(JUDGED, 1, shape=shape, lengths=lengths)
    )
    assert all(generation.prompt_tokens <= 65 + 2 * JUDGED.tail_limit for generation in judged)
