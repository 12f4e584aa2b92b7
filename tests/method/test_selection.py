"""From candidates to one answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.method.answers import FoundAnswer, equal_text
from markovian_rsa_mlx.method.selection import Candidate, RecordedEquivalence, choose, first_with_answer, vote


def candidates(*answers: str) -> list[Candidate]:
    return [Candidate(f"r2-{i:02d}", answer) for i, answer in enumerate(answers)]


def close(first: str, second: str) -> bool:
    """An equivalence that is not transitive: 1 ~ 2 ~ 3, but not 1 ~ 3."""
    return abs(int(first) - int(second)) <= 1


def indices(classes: Sequence[Sequence[Candidate]]) -> list[list[int]]:
    return [[int(c.trace_id[3:]) for c in members] for members in classes]


def test_classes_are_greedy_in_index_order_against_the_first_member() -> None:
    assert indices(vote(candidates("1", "2", "3", "2"), close).classes) == [[0, 1, 3], [2]]
    assert indices(vote(candidates("2", "1", "3"), close).classes) == [[0, 1, 2]]


def test_the_first_member_is_the_first_argument_of_the_equivalence() -> None:
    compared: list[tuple[str, str]] = []

    def equivalent(first: str, second: str) -> bool:
        compared.append((first, second))
        return first == second

    vote(candidates("a", "b", "a", "b"), equivalent)
    assert compared == [("a", "b"), ("a", "a"), ("a", "b"), ("b", "b")]


def test_the_first_member_of_the_largest_class_is_chosen() -> None:
    chosen, tally = choose("majority", candidates("x", "y", "$y$", "z"), aggregated=None, equivalent=equal_text)
    assert chosen.trace_id == "r2-01"
    assert tally.tally == (1, 2, 1)
    assert not tally.tie


def test_ties_go_to_the_lowest_index() -> None:
    chosen, tally = choose("majority", candidates("b", "a", "a", "b"), aggregated=None, equivalent=equal_text)
    assert chosen.trace_id == "r2-00"
    assert tally.tie


@pytest.mark.parametrize("nothing", ["", " ", "$$", "."])
def test_an_empty_answer_is_no_class_and_never_wins(nothing: str) -> None:
    chosen, tally = choose(
        "majority", candidates(nothing, nothing, nothing, "5"), aggregated=None, equivalent=equal_text
    )
    assert chosen.answer == "5"
    assert tally.tally == (1,)


def test_only_the_strongest_level_votes() -> None:
    found = [("7", "weak"), ("7", "weak"), ("", "none"), ("5", "boxed"), ("7", "announced")]
    marked = [Candidate.of(f"r0-{i:02d}", FoundAnswer(text, level)) for i, (text, level) in enumerate(found)]
    assert vote(marked, equal_text).classes == ((marked[3],),)
    assert vote(marked[:3], equal_text).tally == (2,)
    assert choose("single", marked, aggregated=None, equivalent=equal_text)[0] == marked[0]


def test_recorded_equivalence_keeps_the_verdicts_that_no_rule_gives() -> None:
    recorded = RecordedEquivalence(lambda first, second: (first, second) == ("x/2", "0.5x"))
    assert not recorded("1", "2")
    assert recorded("x/2", "0.5x")
    assert not recorded("x/2", "0.5y")
    assert recorded.verdicts == {("x/2", "0.5x"): "same", ("x/2", "0.5y"): "different"}


def test_a_vote_without_answers_falls_back_to_the_first() -> None:
    chosen, tally = choose("majority", candidates("", ""), aggregated=None, equivalent=equal_text)
    assert chosen.trace_id == "r2-00"
    assert tally.winner is None
    assert tally.tally == ()
    assert not tally.tie


def test_single_is_the_first_that_answers_else_the_first() -> None:
    assert choose("single", candidates("", "7", "8", "8"), aggregated=None, equivalent=equal_text)[0].answer == "7"
    assert first_with_answer(candidates("", "")).trace_id == "r2-00"


def test_the_aggregator_is_chosen_unless_it_failed_or_has_no_answer() -> None:
    finals = candidates("1", "2", "2")
    last = Candidate("r3-00", "9")
    assert choose("final_aggregation", finals, aggregated=last, equivalent=equal_text)[0] == last
    assert choose("final_aggregation", finals, aggregated=None, equivalent=equal_text)[0] == finals[0]
    assert choose("final_aggregation", finals, aggregated=Candidate("r3-00", ""), equivalent=equal_text)[0] == finals[0]
    without_answers = candidates("", "")
    assert (
        choose("final_aggregation", without_answers, aggregated=Candidate("r3-00", ""), equivalent=equal_text)[
            0
        ].trace_id
        == "r3-00"
    )


@given(st.lists(st.sampled_from(["", "a", "b", "c", " a "]), min_size=1, max_size=12))
def test_every_answer_is_in_exactly_one_class(answers: list[str]) -> None:
    tally = vote(candidates(*answers), equal_text)
    members = [c.trace_id for group in tally.classes for c in group]
    assert sorted(members) == [c.trace_id for c in candidates(*answers) if c.answer]
    assert [group[0].trace_id for group in tally.classes] == sorted(group[0].trace_id for group in tally.classes)
    if tally.winner is not None:
        size = max(tally.tally)
        assert tally.winner == next(group for group in tally.classes if len(group) == size)[0]
        assert tally.tie == (sum(n == size for n in tally.tally) > 1)
