"""A run on a fake engine: the special cases of the method, the generated traces, and the order of the events."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.audit.events import (
    AggregationPromptEvent,
    ErrorEvent,
    Event,
    FinalEvent,
    GenerationStartEvent,
    RoundCompleteEvent,
    RunEndEvent,
    RunSetupEvent,
    RunStartEvent,
    SelectionEvent,
    SummaryCompleteEvent,
    TailExtractedEvent,
    TraceCompleteEvent,
)
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.base import EngineInfo, GenerationRequest
from markovian_rsa_mlx.config import RSAConfig, Sampling
from markovian_rsa_mlx.errors import ContextLengthError, PromptError, TemplateError
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.method.lineage import Lineage
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator, RunResult
from markovian_rsa_mlx.tokenizer import ChatMessage
from tests.support.fakes import EOS, ByteTokenizer, CharacterTokenizer, FakeEngine, boxed
from tests.support.runs import QUESTION, cut, line_ends, of, of_file, orchestrator, run, small

CODEC = CharacterTokenizer()
SINGLE_PROMPT = tuple(CODEC.encode(CODEC.render_chat([ChatMessage(role="user", content=QUESTION)], True)))


def prompts(backend: FakeEngine) -> dict[str, tuple[int, ...]]:
    return {request.trace_id: request.prompt_token_ids for request in backend.requests}


def ids_of(backend: FakeEngine) -> list[str]:
    return sorted(request.trace_id for request in backend.requests)


# ---------------------------------------------------------------- special cases of the method


def test_no_rounds_is_parallel_sampling() -> None:
    backend = FakeEngine()
    config = small(
        rounds=0,
        population=5,
        aggregation_size=9,
        final_tokens=33,
        temperature=0.5,
        final_temperature=0.7,
        final_top_k=3,
    )
    run(backend, config)
    assert ids_of(backend) == [f"r0-{i:02d}" for i in range(5)]
    assert {request.prompt_token_ids for request in backend.requests} == {SINGLE_PROMPT}
    assert {request.max_tokens for request in backend.requests} == {33}
    assert {request.sampling for request in backend.requests} == {Sampling(0.7, 1.0, 3, 0.0)}


def test_a_vote_over_no_rounds_is_self_consistency() -> None:
    answers = {f"r0-{i:02d}": answer for i, answer in enumerate("abbca")}
    backend = FakeEngine(lambda request, _: boxed(answers[request.trace_id]))
    result = run(backend, small(rounds=0, population=5, answer_selection="majority"))
    assert (result.answer, result.final_trace_id) == ("a", "r0-00")
    assert result.tally == [("a", 2), ("b", 2), ("c", 1)]


def test_t_counts_aggregation_rounds_only() -> None:
    backend = FakeEngine()
    run(backend, small(rounds=2, final_candidates=0))
    assert {request.trace_id[:2] for request in backend.requests} == {"r0", "r1", "r2"}


def test_budgets_and_sampling_change_in_the_final_round_only() -> None:
    backend = FakeEngine()
    run(backend, small(final_tokens=77, final_temperature=0.6, final_top_p=0.95, final_top_k=40))
    for request in backend.requests:
        final = request.trace_id.startswith("r2")
        assert request.max_tokens == (77 if final else 200)
        assert request.sampling == (Sampling(0.6, 0.95, 40, 0.0) if final else Sampling())


def test_one_tail_means_chains_of_t_plus_one() -> None:
    backend = FakeEngine()
    result = run(backend, small(aggregation_size=1, rounds=3, final_candidates=2))
    assert ids_of(backend) == [f"r{t}-{i:02d}" for t in range(4) for i in range(2)]
    for event in of(result.events, AggregationPromptEvent):
        assert event.selected_tail_trace_ids == [f"r{event.round - 1}-{event.trace_id[3:]}"]


def test_tau_equal_to_beta_is_full_chain_token_for_token() -> None:
    wide, full = FakeEngine(), FakeEngine()
    run(wide, small(tail_tokens=200))
    run(full, small(tail_tokens="full"))
    assert prompts(wide) == prompts(full)
    narrow = FakeEngine()
    run(narrow, small(tail_tokens=20))
    assert prompts(narrow) != prompts(full)


def finished_or_cut(request: GenerationRequest, rng: random.Random) -> str:
    """Odd traces never end their thinking. The answer section of r0-02 is blank."""
    if request.trace_id == "r0-02":
        return "silence</think> \n"
    index = int(request.trace_id[-1])
    return f"{request.trace_id} " + ("x" * 500 if index % 2 else "done</think>the answer of it is here")


def tails_by_id(events: Sequence[Event]) -> dict[str, TailExtractedEvent]:
    return {event.trace_id: event for event in of(events, TailExtractedEvent)}


def test_carry_answer_carries_the_answer_section_or_else_the_thinking() -> None:
    result = run(FakeEngine(finished_or_cut), small(carry="answer", aggregation_size=4, rounds=1, tail_tokens=14))
    tails = tails_by_id(result.events)
    assert tails["r0-00"].tail_text == "the answer of it is here"[-14:]
    assert tails["r0-01"].tail_text == "x" * 14
    assert tails["r0-02"].tail_text == "silence"
    (prompt,) = of(result.events, AggregationPromptEvent)
    assert "closing part" in prompt.prompt_text


def summariser(request: GenerationRequest, rng: random.Random) -> str:
    if "colleague" in CODEC.decode(request.prompt_token_ids):
        return f"short of {request.trace_id}"
    return boxed(7, f"long reasoning of {request.trace_id} " + "think " * 5)


def test_carry_summary_carries_summaries_and_counts_their_tokens() -> None:
    backend = FakeEngine(summariser)
    config = small(carry="summary", tail_tokens=30)
    result = run(backend, config)
    needed = {str(key) for keys in Lineage.of(config, 1).needed().values() for key in keys}
    summaries = of(result.events, SummaryCompleteEvent)
    assert {s.trace_id for s in summaries} == {name for name in needed if not name.startswith("r2")}  # pruned alike
    for summary in summaries:
        assert tails_by_id(result.events)[summary.trace_id].tail_text == f"short of {summary.trace_id}"
        assert f"reasoning of {summary.trace_id}" in summary.prompt_text
        assert tuple(CODEC.encode(summary.prompt_text)) == tuple(summary.prompt_token_ids)
    traces = of(result.events, TraceCompleteEvent)
    assert len(backend.requests) == len(summaries) + len(traces)
    assert result.generated_tokens == sum(e.generated_tokens for e in [*summaries, *traces])
    assert len({request.seed for request in backend.requests}) == len(backend.requests)
    assert {r.max_tokens for r in backend.requests if "colleague" in CODEC.decode(r.prompt_token_ids)} == {30}


@pytest.mark.parametrize("silent", [True, False])
def test_a_summary_that_fails_or_is_empty_gives_way_to_the_tail(silent: bool) -> None:
    def fail(request: GenerationRequest) -> None:
        if not silent and "colleague" in CODEC.decode(request.prompt_token_ids):
            raise RuntimeError("no summary today")

    def model(request: GenerationRequest, rng: random.Random) -> str:
        return "" if "colleague" in CODEC.decode(request.prompt_token_ids) else boxed(7, "0123456789" * 3)

    result = run(FakeEngine(model, fail=fail), small(carry="summary", max_retries=1))
    assert {t.tail_text for t in of(result.events, TailExtractedEvent)} == {("0123456789" * 3 + " 7")[-20:]}
    assert bool(result.warnings) is not silent


def test_markov_older_traces_are_never_visible() -> None:
    def model(first: str) -> FakeEngine:
        def write(request: GenerationRequest, rng: random.Random) -> str:
            text = first if request.trace_id.startswith("r0") else request.trace_id
            return boxed(rng.randrange(100), text)

        return FakeEngine(write)

    one, other = model("one way"), model("quite another")
    run(one, small(rounds=3, final_candidates=0))
    run(other, small(rounds=3, final_candidates=0))
    for name, prompt in prompts(one).items():
        assert (prompt == prompts(other)[name]) is not name.startswith("r1")


@pytest.mark.parametrize(("beta", "tau", "size"), [(50, 10, 1), (50, 10, 4), (400, 100, 3), (400, 400, 2)])
def test_prefill_and_decode_are_bounded_whatever_t_and_beta(beta: int, tau: int, size: int) -> None:
    longest: dict[str, int] = Counter()
    backend = FakeEngine(lambda request, rng: "endless " * 100)
    config = small(
        rounds=5,
        aggregation_size=size,
        thinking_tokens=beta,
        tail_tokens=tau,
        final_tokens=70,
        answer_tokens=0,
        final_candidates=0,
    )
    result = run(backend, config)
    (setup,) = of(result.events, RunSetupEvent)
    frame = sum(map(len, setup.segment_token_ids[size - 1]))
    for request in backend.requests:
        longest[request.trace_id[:2]] = max(longest[request.trace_id[:2]], len(request.prompt_token_ids))
        if not request.trace_id.startswith("r0"):
            assert len(request.prompt_token_ids) == frame + size * tau
    assert len({longest[f"r{t}"] for t in range(1, 6)}) == 1  # no prompt grows with t
    for event in of(result.events, TraceCompleteEvent):
        assert event.generated_tokens == (70 if event.round == 5 else beta)


def test_the_frame_of_a_prompt_is_the_question_and_a_constant() -> None:
    def frame(question: str) -> int:
        (setup,) = of(run(FakeEngine(), prompt=question).events, RunSetupEvent)
        return sum(map(len, setup.segment_token_ids[1]))

    assert frame("Q" * 1001) - frame("Q") == 1000


# ---------------------------------------------------------------- what is generated


@pytest.mark.parametrize(("finals", "seed"), [(None, 1), (None, 2), (2, 3), (0, 4)])
def test_only_the_ancestors_of_the_finals_are_generated(finals: int | None, seed: int) -> None:
    backend = FakeEngine()
    config = small(population=8, aggregation_size=2, final_candidates=finals, seed=seed)
    result = run(backend, config)
    needed = Lineage.of(config, seed).needed()
    assert ids_of(backend) == sorted(str(key) for keys in needed.values() for key in keys)
    for done in of(result.events, RoundCompleteEvent):
        assert done.trace_ids == [str(key) for key in needed[done.round]]


def test_pruning_changes_nothing_in_what_is_generated() -> None:
    pruned, whole = FakeEngine(), FakeEngine()
    run(pruned, small(population=8, final_candidates=None))
    run(whole, small(population=8, final_candidates=0))
    everything = {r.trace_id: r for r in whole.requests}
    assert len(pruned.requests) < len(whole.requests)
    for request in pruned.requests:
        assert replace(request, run_id="") == replace(everything[request.trace_id], run_id="")


def test_no_two_traces_share_a_seed_and_none_is_a_clone() -> None:
    backend = FakeEngine()
    result = run(backend, small(population=8, aggregation_size=4, rounds=3, final_candidates=0))
    seeds = [event.seed for event in of(result.events, GenerationStartEvent)]
    assert len(set(seeds)) == len(seeds) == len(backend.requests)
    firsts = [tuple(e.token_ids) for e in of(result.events, TraceCompleteEvent) if e.round == 0]
    assert len(set(firsts)) == len(firsts)


def test_parents_of_the_prompt_are_those_of_the_lineage_in_order() -> None:
    config = small(population=8, aggregation_size=3, final_candidates=0)
    result = run(FakeEngine(), config)
    lineage = Lineage.of(config, 1)
    drawn = {str(key): [str(p) for p in lineage.parents(key)] for keys in lineage.needed().values() for key in keys}
    for prompt in of(result.events, AggregationPromptEvent):
        assert prompt.selected_tail_trace_ids == drawn[prompt.trace_id]
    for start in of(result.events, GenerationStartEvent):
        assert start.parent_trace_ids == drawn[start.trace_id]


def test_prompts_contain_the_recorded_tails() -> None:
    result = run(
        FakeEngine(tokenizer=ByteTokenizer(), model=lambda r, g: "\u00e9\U0001f642" * 9 + boxed(g.randrange(99)))
    )
    tails = tails_by_id(result.events)
    for prompt in of(result.events, AggregationPromptEvent):
        ids = tuple(prompt.prompt_token_ids)
        for parent in prompt.selected_tail_trace_ids:
            piece = tuple(tails[parent].tail_token_ids)
            assert any(ids[i : i + len(piece)] == piece for i in range(len(ids)))
            assert tails[parent].tail_text in prompt.prompt_text
        assert "\ufffd" not in prompt.prompt_text


def test_the_same_seed_gives_the_same_run_whatever_the_concurrency() -> None:
    def traces(concurrency: int | str, chunk: int) -> Any:
        result = run(FakeEngine(chunk=chunk), small(final_candidates=0, concurrency=concurrency))
        return result.text, {e.trace_id: e.token_ids for e in of(result.events, TraceCompleteEvent)}

    assert traces("auto", 16) == traces(1, 7) == traces(3, 1)


def test_an_unset_seed_is_drawn_and_recorded() -> None:
    results = [run(FakeEngine(), small(seed=None)) for _ in range(2)]
    assert results[0].seed != results[1].seed
    for result in results:
        (start,), (setup,) = of(result.events, RunStartEvent), of(result.events, RunSetupEvent)
        assert start.config.seed == setup.seed == result.seed
        assert run(FakeEngine(), small(seed=result.seed)).text == result.text


# ---------------------------------------------------------------- concurrency and order


@pytest.mark.parametrize(("size", "rounds", "finals"), list(product([1, 2, 4], [0, 1, 3], [1, 2, 4])))
def test_one_slot_is_enough_for_any_shape(size: int, rounds: int, finals: int) -> None:
    backend = FakeEngine()
    config = small(aggregation_size=size, rounds=rounds, final_candidates=finals, concurrency=1)
    assert run(backend, config).text
    assert backend.rows == 1


@pytest.mark.parametrize("carry", ["tail", "summary"])
@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_no_more_traces_at_once_than_asked_for(concurrency: int, carry: str) -> None:
    backend = FakeEngine(chunk=4)
    run(backend, small(population=8, final_candidates=0, concurrency=concurrency, carry=carry))
    assert backend.rows == concurrency


def test_without_a_bound_a_whole_round_runs_at_once() -> None:
    backend = FakeEngine(chunk=4)
    run(backend, small(population=8, rounds=0))
    assert backend.rows == 8


def test_a_trace_starts_as_soon_as_its_own_parents_are_done() -> None:
    slow = "r0-03"
    config = small(population=4, aggregation_size=2, rounds=1, final_candidates=0)
    lineage = Lineage.of(config, 1)
    without = [str(k) for k in lineage.finals if slow not in map(str, lineage.parents(k))]
    assert without
    result = run(FakeEngine(lambda r, g: "x" * 190 if r.trace_id == slow else boxed(g.randrange(99)), chunk=1), config)
    order = [
        (e.EVENT_NAME, e.trace_id) for e in result.events if isinstance(e, (GenerationStartEvent, TraceCompleteEvent))
    ]
    for child in without:
        assert order.index(("trace_complete", child)) < order.index(("trace_complete", slow))


def position(events: Sequence[Event], kind: str, trace_id: str) -> int:
    found = [i for i, e in enumerate(events) if kind == e.EVENT_NAME and getattr(e, "trace_id", "") == trace_id]
    assert len(found) == 1, (kind, trace_id, found)
    return found[0]


@pytest.mark.parametrize(
    "settings", [{}, {"concurrency": 1}, {"final_candidates": 0, "rounds": 3}, {"carry": "summary"}]
)
def test_events_come_in_their_order(settings: dict[str, Any]) -> None:
    config = small(population=6, aggregation_size=3, **settings)
    events = run(FakeEngine(chunk=3), config).events
    assert [e.EVENT_NAME for e in events[:2]] == ["run_start", "run_setup"]
    lineage = Lineage.of(config, 1)
    for t, keys in lineage.needed().items():
        for key in keys:
            name = str(key)
            start = position(events, "generation_start", name)
            done = position(events, "trace_complete", name)
            assert start < done
            if t:
                prompted = position(events, "aggregation_prompt", name)
                assert prompted < start
                for parent in lineage.parents(key):
                    assert position(events, "trace_complete", str(parent)) < prompted
                    assert position(events, "tail_extracted", str(parent)) < prompted
            if t == config.rounds:
                assert name not in tails_by_id(events)
            else:
                assert done < position(events, "tail_extracted", name)
    rounds = [e for e in events if isinstance(e, RoundCompleteEvent)]
    assert [e.round for e in rounds] == list(range(config.rounds + 1))
    for done_event in rounds:
        after = events.index(done_event)
        assert all(position(events, "trace_complete", name) < after for name in done_event.trace_ids)
    assert [e.EVENT_NAME for e in events if e.EVENT_NAME in ("selection", "final", "run_end")] == [
        "selection", "final", "run_end",
    ]  # fmt: skip
    assert events[-1].EVENT_NAME == "run_end"
    assert len({getattr(e, "run_id", None) for e in events}) == 1


def test_ids_include_eos_and_texts_do_not() -> None:
    result = run(FakeEngine(), small())
    for event in of(result.events, TraceCompleteEvent):
        assert event.token_ids[-1] == EOS
        assert event.finish_reason == "eos"
        assert event.generated_tokens == len(event.token_ids)
        assert event.text == CODEC.decode(event.token_ids)
    for tail in of(result.events, TailExtractedEvent):
        assert EOS not in tail.tail_token_ids
        assert tail.tail_tokens == len(tail.tail_token_ids)


def test_tokens_are_those_of_all_stages_without_prompts() -> None:
    result = run(FakeEngine(), small(final_candidates=0))
    (end,) = of(result.events, RunEndEvent)
    counted = sum(len(e.token_ids) for e in of(result.events, TraceCompleteEvent))
    assert end.total_generated_tokens == result.generated_tokens == counted


def test_the_file_holds_what_the_result_holds(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.jsonl"
    seen: list[Event] = []
    result = run(FakeEngine(), small(), path, on_event=seen.append)
    assert of_file(path, RunStartEvent)[0].prompt == QUESTION
    assert [e.to_dict() for e in result.events] == [e.to_dict() for e in of_file(path, object)]  # type: ignore[type-var]
    assert seen == result.events
    assert path.stat().st_mode & 0o777 == 0o600


def test_progress_receives_every_token_of_every_trace_once() -> None:
    received: dict[str, list[int]] = {}
    result = run(FakeEngine(), small(), on_progress=lambda name, ids: received.setdefault(name, []).extend(ids))
    assert received == {e.trace_id: e.token_ids for e in of(result.events, TraceCompleteEvent)}


# ---------------------------------------------------------------- the answer


def answering(answers: dict[str, str]) -> FakeEngine:
    """Return a model with these answers by trace id, "0" for others. "" is a trace that never reaches its answer."""

    def model(request: GenerationRequest, rng: random.Random) -> str:
        answer = answers.get(request.trace_id, "0")
        return boxed(answer) if answer else r"I think \boxed{99} " + "x" * 500

    return FakeEngine(model)


FINALS = {"final_candidates": 0, "rounds": 1, "answer_tokens": 0}


def test_a_cut_trace_has_no_answer_whatever_box_it_holds() -> None:
    result = run(answering({"r1-00": "", "r1-01": "5"}), small(**FINALS))
    assert (result.answer, result.final_trace_id) == ("5", "r1-01")
    (selection,) = of(result.events, SelectionEvent)
    assert selection.answers == ["", "5", "0", "0"]


def test_the_text_is_the_part_after_the_thinking() -> None:
    result = run(answering({"r1-00": "5"}), small(rounds=1))
    assert result.text == r"\boxed{5}"
    (final,) = of(result.events, FinalEvent)
    assert (final.final_text, final.final_trace_id) == (r"\boxed{5}", "r1-00")
    assert final.all_final_trace_ids == ["r1-00"]
    assert final.answer_selection == "single"


def test_a_model_without_markers_answers_in_its_whole_text() -> None:
    backend = FakeEngine(lambda r, g: "I think it is \\boxed{4}.", tokenizer=CharacterTokenizer(thinking=False))
    result = run(backend, small())
    assert result.text == "I think it is \\boxed{4}."
    assert result.answer == "4"
    assert {t.tail_text for t in of(result.events, TailExtractedEvent)} == {"I think it is \\boxed{4}."[-20:]}


def test_majority_chooses_the_first_trace_of_the_largest_class() -> None:
    result = run(
        answering({"r1-00": "3", "r1-01": "4", "r1-02": "", "r1-03": "4"}), small(**FINALS, answer_selection="majority")
    )
    assert (result.answer, result.final_trace_id) == ("4", "r1-01")
    assert result.tally == [("3", 1), ("4", 2)]
    (selection,) = of(result.events, SelectionEvent)
    assert (selection.classes, selection.tally, selection.tie) == ([["r1-00"], ["r1-01", "r1-03"]], [1, 2], False)


def test_majority_without_any_answer_chooses_the_first_trace() -> None:
    result = run(answering({f"r1-0{i}": "" for i in range(4)}), small(**FINALS, answer_selection="majority"))
    assert (result.answer, result.text, result.final_trace_id) == ("", "", "r1-00")


def test_final_aggregation_reads_the_finals_and_is_chosen() -> None:
    backend = answering({"r2-00": "77"})
    config = small(**FINALS, aggregation_size=3, answer_selection="final_aggregation")
    result = run(backend, config)
    assert (result.answer, result.final_trace_id) == ("77", "r2-00")
    (prompt,) = [e for e in of(result.events, AggregationPromptEvent) if e.round == 2]
    assert prompt.selected_tail_trace_ids == ["r1-00", "r1-01", "r1-02"]
    (final,) = of(result.events, FinalEvent)
    assert final.all_final_trace_ids == ["r1-00", "r1-01", "r1-02", "r1-03"]
    assert [e.round for e in of(result.events, RoundCompleteEvent)] == [0, 1, 2]
    last = next(r for r in backend.requests if r.trace_id == "r2-00")
    assert last.max_tokens == config.final_tokens


def test_parallel_samples_can_be_aggregated_too() -> None:
    backend = answering({"r1-00": "77"})
    assert run(backend, small(rounds=0, aggregation_size=8, answer_selection="final_aggregation")).answer == "77"
    assert len(backend.requests) == 5


def test_round_zero_holds_the_vote_and_the_number_of_generated_traces() -> None:
    config = small(population=8, rounds=1)
    first = [str(key) for key in Lineage.of(config, 1).needed()[0]]
    result = run(answering(dict.fromkeys(first, "6")), config)
    assert result.round_zero == {"traces": len(first), "answer": "6", "votes": len(first)}
    assert len(first) < 8


def test_equal_values_are_one_class_by_default() -> None:
    backend = answering({"r1-00": "3", "r1-01": "1/2", "r1-02": "0.5", "r1-03": ""})
    with MarkovianRSAOrchestrator(backend) as whole:
        assert whole.run(QUESTION, small(**FINALS, answer_selection="majority")).answer == "1/2"
        plain = small(**FINALS, answer_selection="majority", answer_kind="text")
        assert whole.run(QUESTION, plain).answer == "3"  # where equal values are not equal answers


# ---------------------------------------------------------------- the prompt


def test_a_chat_keeps_its_system_message_and_earlier_turns() -> None:
    chat = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="First?"),
        ChatMessage(role="assistant", content="Yes."),
        ChatMessage(role="user", content="And now?"),
    ]
    backend = FakeEngine()
    result = run(backend, small(), prompt=chat)
    for request in backend.requests:
        text = CODEC.decode(request.prompt_token_ids)
        assert text.startswith("Be brief.\nFirst?\nYes.\nAnd now?")
        assert request.messages[:-1] == tuple(chat[:-1])
        assert request.messages[-1]["content"].startswith("And now?")
    (start,) = of(result.events, RunStartEvent)
    assert start.prompt == "And now?"


def test_messages_and_ids_of_a_request_are_the_same_prompt() -> None:
    backend = FakeEngine()
    run(backend, small())
    for request in backend.requests:
        assert tuple(CODEC.encode(CODEC.render_chat(request.messages, True))) == request.prompt_token_ids


@pytest.mark.parametrize("thinking", [True, False])
def test_enable_thinking_reaches_the_chat_template(thinking: bool) -> None:
    backend = FakeEngine()
    run(backend, small(enable_thinking=thinking))
    for request in backend.requests:
        assert CODEC.decode(request.prompt_token_ids).endswith("-") is not thinking


def test_without_thinking_a_text_without_a_marker_is_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    backend = FakeEngine(lambda request, rng: "It is \\boxed{42}.")
    result = run(backend, small(enable_thinking=False, answer_selection="majority", final_candidates=0), path)
    assert CODEC.end_of_thinking
    assert (result.text, result.answer, result.tally) == ("It is \\boxed{42}.", "42", [("42", 4)])
    assert verify_file(path, equivalent=equal_text).finished


def test_a_text_without_a_marker_is_the_answer_if_it_ended_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    settings = small(answer_selection="majority", final_candidates=0, answer_tokens=0)
    result = run(FakeEngine(lambda request, rng: "It is \\boxed{42}."), settings, path)
    assert (result.answer, result.tally) == ("42", [("42", 4)])
    assert verify_file(path, equivalent=equal_text).finished
    endless = FakeEngine(lambda request, rng: "It is \\boxed{42}. " * 99)
    truncated = run(endless, settings)
    assert (truncated.answer, truncated.tally) == ("", [])  # what was cut in mid-thought has no vote


def test_a_template_of_ones_own_is_used_and_recorded(tmp_path: Path) -> None:
    path = tmp_path / "mine.j2"
    path.write_text("{{ problem }}{% for a in attempts %}#{{ a.text }}{% endfor %}")
    result = run(FakeEngine(), small(template=str(path)))
    for prompt in of(result.events, AggregationPromptEvent):
        assert prompt.prompt_text.startswith(f"<user>{QUESTION}#")
    (setup,) = of(result.events, RunSetupEvent)
    assert setup.template_source == path.read_text()


@pytest.mark.parametrize("prompt", ["", " \n", [], [ChatMessage(role="assistant", content="x")], [{"role": "user"}]])
def test_a_prompt_that_asks_nothing_leaves_no_file(prompt: Any, tmp_path: Path) -> None:
    with pytest.raises(PromptError):
        run(FakeEngine(), small(), tmp_path / "run.jsonl", prompt)
    assert not (tmp_path / "run.jsonl").exists()


def test_a_bad_template_is_refused_before_anything_is_generated(tmp_path: Path) -> None:
    backend = FakeEngine()
    with pytest.raises(TemplateError):
        run(backend, small(template=str(tmp_path / "none.j2")), tmp_path / "run.jsonl")
    assert not backend.requests


def test_a_run_that_cannot_fit_the_context_is_refused_before_it_starts() -> None:
    needs = len(SINGLE_PROMPT) + 200
    assert run(FakeEngine(context_length=needs), small(rounds=0)).text
    with pytest.raises(ContextLengthError, match="Lower final_tokens to"):
        run(FakeEngine(context_length=needs - 1), small(rounds=0))
    with pytest.raises(ContextLengthError):
        run(FakeEngine(context_length=needs), small(rounds=1))


def test_the_context_check_is_exact_for_aggregation_prompts() -> None:
    backend = FakeEngine(lambda r, g: "x" * 500)
    run(backend, small())
    longest = max(len(r.prompt_token_ids) + r.max_tokens for r in backend.requests)
    assert run(FakeEngine(context_length=longest), small()).text is not None
    with pytest.raises(ContextLengthError):
        run(FakeEngine(context_length=longest - 1), small())


def test_lone_surrogates_in_prompt_and_text_do_not_crash(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    result = run(FakeEngine(lambda r, g: boxed("4\udc80")), small(), path, prompt="caf\udce9?")
    assert result.answer
    again = run(FakeEngine(), small(), path, prompt="caf\udce9?")  # the same question, and no other
    assert again.run_id == result.run_id


# ---------------------------------------------------------------- identical traces


@pytest.mark.parametrize(
    ("chance", "temperature", "alarm"),
    [
        (-500.0, 1.0, True),
        (-14.0, 1.0, True),
        (-13.0, 1.0, False),
        (-0.1, 1.0, False),
        (None, 1.0, False),
        (-500.0, 0, False),
    ],
)
def test_identical_traces_alarm_where_chance_cannot_explain_them(
    chance: float | None, temperature: float, alarm: bool
) -> None:
    class Clones(FakeEngine):
        async def log_probability(
            self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], sampling: Sampling
        ) -> float | None:
            await asyncio.sleep(0)
            return chance

    result = run(Clones(lambda r, g: boxed(7)), small(temperature=temperature))
    alarms = [e for e in of(result.events, ErrorEvent) if e.stage == "identical_traces"]
    assert len(alarms) == alarm  # one is enough
    assert [w for w in result.warnings if "identical" in w] == [e.message for e in alarms]


def test_a_resumed_run_warns_of_identical_traces_once(tmp_path: Path) -> None:
    class Clones(FakeEngine):
        async def log_probability(self, *_: Any) -> float | None:
            return -500.0

    def resumed(keep: int) -> RunResult:
        return run(Clones(lambda r, g: boxed(7)), small(), cut(path, keep, tmp_path / f"{keep}.jsonl"))

    path = tmp_path / "run.jsonl"
    run(Clones(lambda r, g: boxed(7)), small(), path)
    for keep in line_ends(path)[2:]:
        result = resumed(keep)
        assert len([w for w in result.warnings if "are identical" in w]) <= 1
        assert (result.answer, verify_file(tmp_path / f"{keep}.jsonl", equivalent=equal_text).finished) == ("7", True)


def test_a_likely_coincidence_does_not_hide_an_impossible_one() -> None:
    class Clones(FakeEngine):
        async def log_probability(
            self, prompt_token_ids: Sequence[int], token_ids: Sequence[int], sampling: Sampling
        ) -> float | None:
            return -0.5 if len(token_ids) < 10 else -300.0

    result = run(
        Clones(lambda r, g: "x" if r.trace_id in ("r0-00", "r0-01") else boxed(7)),
        small(rounds=0, population=4),
    )
    assert [w for w in result.warnings if "r0-02 and r0-03 are identical" in w]


def test_different_traces_are_never_scored() -> None:
    class Never(FakeEngine):
        async def log_probability(self, *_: Any) -> float | None:
            raise AssertionError("asked for")

    assert run(Never(), small()).warnings == []


def test_an_alarm_that_cannot_be_computed_does_not_end_the_run() -> None:
    class Broken(FakeEngine):
        async def log_probability(self, *_: Any) -> float | None:
            raise RuntimeError("no scores")

    assert run(Broken(lambda r, g: boxed(7)), small()).answer == "7"


# ---------------------------------------------------------------- ways to call it


def test_solve_gives_text_or_text_and_events() -> None:
    whole = orchestrator(answering({"r2-00": "8"}))
    assert whole.solve(QUESTION, small()) == r"\boxed{8}"
    text, events = whole.solve(QUESTION, config=small(), return_audit=True)
    assert text == r"\boxed{8}"
    assert isinstance(events[-1], RunEndEvent)  # type: ignore[index]


def test_solve_works_where_a_loop_already_runs() -> None:
    async def notebook() -> Any:
        return orchestrator(answering({"r2-00": "8"})).solve(QUESTION, small())

    assert asyncio.run(notebook()) == r"\boxed{8}"


def test_concurrent_asolve_calls_give_independent_results() -> None:
    async def several() -> list[Any]:
        whole = orchestrator(FakeEngine())
        return await asyncio.gather(*(whole.asolve(QUESTION, small(seed=s)) for s in (1, 2, 1)))

    first, second, third = asyncio.run(several())
    assert first == third != second


def test_the_default_settings_are_those_of_a_16_gb_mac() -> None:
    result = run(FakeEngine(), RSAConfig.default_16gb().replace(seed=3))
    assert len(of(result.events, TraceCompleteEvent)) == 5
    assert orchestrator(FakeEngine()).solve(QUESTION)


def test_the_memory_limit_reaches_the_engine_and_the_run_records_the_engine() -> None:
    class Limited(FakeEngine):
        limits: list[Any] = []  # noqa: RUF012

        def limit(self, max_rows: int | None, memory_limit_bytes: int | None) -> None:
            self.limits.append(memory_limit_bytes)

        @property
        def info(self) -> EngineInfo:
            return replace(super().info, quantization="4-bit", dtype="bfloat16")

    backend = Limited()
    events = run(backend, small(memory_limit_gb=1.5)).events
    assert backend.limits == [1_500_000_000]
    assert of(events, RunStartEvent)[0].quantization == "4-bit"
    assert of(events, RunSetupEvent)[0].dtype == "bfloat16"


def test_the_embedded_reasoner_refuses_other_questions_and_words_its_own_as_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = FakeEngine()
    embedded = replace(backend.info, model_id=reasoner.MODEL_ID)
    monkeypatch.setattr(FakeEngine, "info", embedded)
    asked = orchestrator(backend)
    with pytest.raises(PromptError, match="It accepts, for example"):
        asked.run(QUESTION, small())
    assert backend.requests == []
    start = of(asked.run("what is 12+30?", small()).events, RunStartEvent)[0]
    assert start.prompt == "State the final answer to the following arithmetic problem: 12 + 30 ="
    asked.any_question = True
    assert of(asked.run(QUESTION, small()).events, RunStartEvent)[0].prompt == QUESTION


def test_the_embedded_reasoner_reads_the_last_question_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeEngine()
    monkeypatch.setattr(FakeEngine, "info", replace(backend.info, model_id=reasoner.MODEL_ID))
    turns = [("system", "Be brief."), ("user", "what is 1+1?"), ("assistant", "2"), ("user", "what is 12+30?")]
    orchestrator(backend).run([ChatMessage(role=role, content=text) for role, text in turns], small())
    (message,) = backend.requests[0].messages
    assert message["content"] == "State the final answer to the following arithmetic problem: 12 + 30 ="


def test_closing_closes_the_engine() -> None:
    class Closing(FakeEngine):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    backend = Closing()
    with orchestrator(backend):
        pass
    assert backend.closed
