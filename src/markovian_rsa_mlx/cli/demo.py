"""`mrsa demo`: a sum that no single trace of the embedded reasoner can finish, solved in rounds, on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import RSAConfig
from ..tokenizer import ChatMessage
from .command import PATH, Command, option
from .engine_options import SPECULATE_OPTION, choose_engine
from .terminal import amount, count, duration, one_line, print_status

if TYPE_CHECKING:
    from ..audit import RunState
    from ..audit.state import TraceState

#: A trace of the embedded model does the work of about four terms within this beta.
_CONFIG = RSAConfig.embedded().replace(
    rounds=3,
    thinking_tokens=64,
    final_tokens=64,
    tail_tokens=40,
    temperature=0.6,
    final_candidates=0,
    answer_selection="majority",
)


@click.command(
    "demo",
    cls=Command,
    examples=(
        "mrsa demo",
        "mrsa demo --puzzle-seed 7 --seed 2",
    ),
)
@option("--puzzle-seed", type=click.IntRange(0, 10**9), default=0, metavar="K", help="Number of the sum.")
@option("--seed", type=click.IntRange(0, 2**63 - 1), default=1, metavar="SEED", help="Seed of the run.")
@option("--audit", type=PATH, metavar="FILE.jsonl", help="Path of the trail; unset: in the folder of solve's trails.")
@SPECULATE_OPTION
def demo(puzzle_seed: int, seed: int, audit: Path | None, speculate: str | None) -> int:
    """Solve a long sum with the embedded reasoner, round by round.

    Nothing is downloaded. The answer is checked by exact arithmetic and the trail is verified.
    """
    from .. import reasoner, run_store
    from ..audit import RunState
    from .run import print_result, run_name, run_question
    from .runs import verify_run

    question = reasoner.demo_sum(puzzle_seed)
    terms = question.count(" + ") + question.count(" - ") + 1
    config = _CONFIG.replace(seed=seed)
    print_status(
        f"A sum of {terms} terms for the embedded model (nothing is downloaded):\n\n"
        f"  {question.split(': ', 1)[1]}\n\n"
        f"{config.population} traces think for {config.thinking_tokens} tokens. Then {config.rounds} rounds of traces "
        f"read the last {config.tail_limit} tokens of {config.aggregation_size} traces each, and continue.\n"
    )
    path = audit or run_store.new_run_path(question)
    chat = [ChatMessage(role="user", content=question)]
    choice = choose_engine(speculate=speculate)
    outcome = run_question(choice, chat, config, path, quiet=True)
    if outcome.stopped:
        print_result(outcome, choice)
        return outcome.exit_code
    result = outcome.result
    state = RunState(result.events)
    print_status("\n".join(_rounds(state)) + "\n")
    checker = reasoner.answer_checker(question)
    right = checker is not None and checker(result.answer)
    print_status(f"Answer, {'right' if right else 'wrong'} by exact arithmetic:")
    print(one_line(result.answer, 200) or "none", flush=True)
    print_status(_vote_of_round_zero(result.round_zero))
    cost = f"{amount(result.generated_tokens, 'token')} in {duration(result.elapsed_s)}"
    print_status(f"{cost}. Trail {verify_run(path).verdict}.")
    if not right:
        print_status("The tiny model is wrong now and then; try another --seed or --puzzle-seed.")
    name = f"{run_name(result)} " if audit else ""
    print_status(
        f"\nSee how it was found, try another sum, ask your own:\n  mrsa view {name}--open\n"
        f'  mrsa demo --puzzle-seed {puzzle_seed + 1}\n  mrsa solve "{reasoner.EXAMPLES[2]}"'
    )
    return 0 if right else 1


def _rounds(state: RunState) -> Iterator[str]:
    """Describe the answers of each round, equal ones counted together."""
    for number, traces in state.rounds():
        answers = ", ".join(f"{one_line(answer, 30)} ×{votes}" for answer, votes in state.tally(traces)[:5])
        without = sum(not state.answer(trace) for trace in traces)
        unfinished = f"{amount(without, 'trace')} without an answer" if without else ""
        yield f"  round {number}   {'; '.join(part for part in (answers, unfinished) if part)}"
    first = state.rounds()[0][1]
    finished = sum(map(_has_finished, first))
    if finished == 0:
        yield f"No single trace can finish it: none of {len(first)} in round 0 did."
    else:
        yield f"{count(finished)} of {len(first)} traces of round 0 finished on their own."


def _has_finished(trace: TraceState) -> bool:
    return trace.complete is not None and trace.complete.finish_reason == "eos"


def _vote_of_round_zero(round_zero: dict[str, object]) -> str:
    answer, votes, traces = (round_zero.get(key) for key in ("answer", "votes", "traces"))
    if not answer:
        return f"A vote of the {traces} traces of round 0 would have had no answer."
    return f"A vote of round 0 would have answered {one_line(str(answer), 30)} ({votes} of {traces})."
