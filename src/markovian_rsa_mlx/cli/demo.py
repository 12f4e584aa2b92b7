"""`mrsa demo`: solve a puzzle with the embedded reasoner and check the answer independently."""

from __future__ import annotations

from pathlib import Path

import click

from ..config import RSAConfig
from ..tokenizer import ChatMessage
from .command import PATH, Command, option
from .options import choose_model
from .terminal import one_line, print_status


@click.command("demo", cls=Command)
@option("--puzzle-seed", type=click.IntRange(min=0), default=0, metavar="K", help="Number of the puzzle.")
@option("--seed", type=click.IntRange(min=0), default=1, metavar="SEED", help="Seed of the run.")
@option("--audit", type=PATH, metavar="FILE.jsonl", help="Path of the trail; unset: in the folder of solve's trails.")
def demo(puzzle_seed: int, seed: int, audit: Path | None) -> int:
    """Solve a number puzzle with the embedded reasoner.

    Nothing is downloaded. The answer is checked by exact arithmetic and the trail is verified.
    """
    from .. import run_store
    from ..reasoner import puzzles
    from .run import print_result, run_name, run_question
    from .runs import verify_run

    puzzle = puzzles.demo_puzzle(puzzle_seed)
    print_status(f"Puzzle {puzzle_seed}:\n\n  " + puzzle.question.strip().replace("\n", "\n  ") + "\n")
    path = audit or run_store.new_run_path(puzzle.question)
    config = RSAConfig.embedded().replace(seed=seed)
    chat = [ChatMessage(role="user", content=puzzle.question)]
    outcome = run_question(choose_model(None), chat, config, path)
    print_result(outcome)
    answer = outcome.result.answer
    if answer:
        print(one_line(answer, 200), flush=True)
    if outcome.stopped:
        return outcome.exit_code
    right = puzzles.check(answer, puzzle)
    verdict = "right" if right else "wrong" if answer else "no answer"
    print_status(
        f"Checked by exact arithmetic: {verdict}. "
        f"The task was to make {puzzle.target} of {', '.join(map(str, puzzle.numbers))}."
    )
    print_status(f"Trail {verify_run(path).verdict}.")
    if not right:
        print_status("The tiny reasoner is wrong now and then; try another --seed or --puzzle-seed.")
    name = run_name(outcome.result)
    steps = (
        (f"mrsa view {name} --open", "show in the browser how this answer was found"),
        (f"mrsa runs show {name}", "the same as text"),
        (f"mrsa demo --puzzle-seed {puzzle_seed + 1}", "another puzzle"),
        ("mrsa plan --model Zyphra/ZAYA1-8B", "the memory and tokens that a published model needs"),
    )
    print_status("\nNext:\n" + "\n".join(f"  {command:<36} {what}" for command, what in steps))
    return 0 if right else 1
