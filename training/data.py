"""Draw training examples: round-0 and aggregation prompts of both tasks, with their responses.

Aggregation prompts are built by the project's own prompt builder from simulated tails, cut by its own functions,
so that training and use stay the same.
"""

from __future__ import annotations

import argparse
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

import jinja2
from tokenizers import Tokenizer

from markovian_rsa_mlx.method.prompts import PromptBuilder, PromptTemplate, build_segments, chat_frame
from markovian_rsa_mlx.method.tails import Tail, parse_trace, take_tail
from markovian_rsa_mlx.reasoner import puzzles
from markovian_rsa_mlx.tokenizer import ChatMessage
from training import reading, traces
from training.examples import Builder, Example
from training.records import Record, load_records
from training.tokenizer import ReasonerTokenizer
from training.traces import Chain, Pieces

TEMPLATES = {name: PromptTemplate.load(name) for name in ("zaya_v1", "rsa_v1")}
JUDGE = jinja2.Template(files("markovian_rsa_mlx.method.templates").joinpath("judge_v1.j2").read_text("utf-8"))
#: How often each kind of example is drawn, by stage of the training.
MIXES = {
    "main": {"search": 0.38, "aggregate": 0.38, "sum": 0.06, "continue": 0.13, "judge": 0.05},
    "both": {"search": 0.34, "aggregate": 0.36, "sum": 0.1, "continue": 0.16, "judge": 0.04},
    "sums": {"search": 0.27, "aggregate": 0.32, "sum": 0.12, "continue": 0.25, "judge": 0.04},
}
#: How often an aggregation prompt has the layout `rsa_v1` instead of `zaya_v1`.
OTHER_LAYOUT = 0.1
#: How often a puzzle with three numbers, or with a target above 50, is kept.
KEEP_THREE, KEEP_LARGE = 0.1, 0.25
#: How many numbers the puzzles of the training have.
COUNTS = (3, 4)
#: Side branches of a search: right attempts, attempts that hit the target with wrong numbers; of a sum: other values.
HITS = 9
MISUSES = 2
DRILLS = 7
#: Amounts that an error adds to a value of a sum, and how often a shown trace begins with one.
ERRORS = (-10, -1, 1, 10, 2, -20, 100, -100)
WRONG_BEGINNING = 0.15
#: How often the traces that a continued sum shows are truncated just before the total.
LACKS_TOTAL = 0.2
#: How often the model's own traces are used, where there are any: in aggregation prompts, in searches.
HARVESTED_TAILS, HARVESTED_ATTEMPTS = 0.65, 0.5

#: A tail's number, the chain that it claims, and the value that it claims for it.
Claim = tuple[int, Chain, int]


def furthest_line(tails_with: Mapping[tuple[int, int], int]) -> tuple[int, int]:
    """Return the furthest line on which two tails agree, or the furthest one if there is none.

    Lines are given and returned with their values. Of different values, the one of most tails counts.
    """
    agreed = {state: count for state, count in tails_with.items() if count > 1} or tails_with
    return max(agreed, key=lambda state: (state[0], agreed[state]))


def text_of(pieces: Pieces) -> str:
    """The text of a trace."""
    return "".join(piece for piece, _ in pieces)


class Drawer:
    """Draws examples with one random stream and one tokenizer."""

    def __init__(
        self, tokenizer: Tokenizer, rng: random.Random, records: Sequence[Record] = (), mix: str = "main"
    ) -> None:
        self.records, self.mix = records, MIXES[mix]
        self.rng, self.vocabulary, self.tokenizer = rng, tokenizer, ReasonerTokenizer(tokenizer)
        message = ChatMessage(role="user", content="?")
        self.frame = chat_frame(self.tokenizer, [message], enable_thinking=True)

    def prompt(self, question: str) -> list[int]:
        """Ids of the prompt of a single trace."""
        return self.tokenizer.encode(self.frame.prefix + question + self.frame.suffix)

    def aggregation(self, question: str, tails: Sequence[Tail]) -> list[int]:
        """Ids of the project's aggregation prompt."""
        template = TEMPLATES["rsa_v1" if self.rng.random() < OTHER_LAYOUT else "zaya_v1"]
        segments = build_segments(
            self.tokenizer, template, self.frame, problem=question, carry="tail", max_parents=len(tails)
        )
        return list(PromptBuilder(self.tokenizer, segments, self.frame).build(tails).token_ids)

    def tail(self, text: str, beta: int, tau: int) -> Tail:
        """The tail of a trace with this text under a budget of `beta` tokens."""
        return self.cut(self.tokenizer.encode(text)[:beta], tau)

    def cut(self, trace: list[int], tau: int) -> Tail:
        """The tail of a trace given as token ids."""
        split = parse_trace(trace, self.tokenizer.end_of_thinking)
        return take_tail(split.thinking_ids, tau, self.tokenizer.control_ids, self.tokenizer.decode)

    def puzzle(self) -> tuple[tuple[int, ...], int, list[Chain]]:
        """Numbers, target and solutions of a puzzle that is not held out."""
        while True:
            drawn = puzzles.draw(self.rng, COUNTS)
            if drawn is None or puzzles.is_held_out(*drawn):
                continue
            numbers, target = drawn
            if self.rng.random() >= (KEEP_THREE if len(numbers) == 3 else 1) * (KEEP_LARGE if target > 50 else 1):
                continue
            if found := puzzles.solutions(numbers, target):
                return numbers, target, found

    def question(self, numbers: tuple[int, ...], target: int) -> str:
        """The puzzle in a random wording."""
        rng = self.rng
        text = puzzles.ask(numbers, target, rng.randrange(3), rng.random() < 0.5)
        return text.strip() if rng.random() < 0.5 else text

    def search(self) -> Example:
        """A trace from the bare question: wrong attempts, a right one, its conclusion."""
        record = self.record() if self.records and self.rng.random() < HARVESTED_ATTEMPTS else None
        numbers, target, found = (record.numbers, record.target, record.solutions) if record else self.puzzle()
        builder = Builder(self.vocabulary, self.prompt(self.question(numbers, target)))
        self.search_on(builder, numbers, target, found, record.failed if record else [])
        return builder.build()

    def search_on(
        self, builder: Builder, numbers: Sequence[int], target: int, found: list[Chain], failed: list[Chain]
    ) -> None:
        """Continue the trunk with a search. Side branches are right attempts from its boundaries.

        Its wrong attempts are some of `failed`, or random ones where there are none.
        """
        rng = self.rng
        count = 0 if rng.random() < 0.3 else rng.randint(1, 6)
        boundaries = [len(builder.trunk)]
        drawn = rng.sample(failed, min(count, len(failed))) or traces.wrong_attempts(rng, numbers, target, count)
        for chain in drawn:
            builder.extend(traces.attempt(chain, "no", 0.0))
            boundaries.append(len(builder.trunk))
        # With replacement: a puzzle with one solution counts as much as one with twenty.
        for chain, boundary in dict.fromkeys((rng.choice(found), rng.choice(boundaries)) for _ in range(HITS)):
            builder.fork(traces.attempt(chain, "ok", 1.0), boundary)
        hits = [chain for chain in failed if traces.value_of(chain) == target]
        for _ in range(MISUSES):
            if chain := rng.choice(hits) if hits and rng.random() < 0.7 else traces.misuse(rng, numbers, target):
                builder.fork(traces.attempt(chain, "no", 0.0), rng.choice(boundaries))
        right = rng.choice(found)
        builder.extend(traces.attempt(right, "ok", 1.0))
        builder.extend(traces.conclusion(right, target))

    def search_text(self, numbers: Sequence[int], target: int, right: Chain | None, claim: str) -> str:
        """A simulated trace: wrong attempts, then `claim` for `right`, or nothing but attempts."""
        rng = self.rng
        count = rng.randint(0, 5) if right is not None else 9
        failed = traces.wrong_attempts(rng, numbers, target, count)
        text = "".join(text_of(traces.attempt(chain, "no", 0.0)) for chain in failed)
        if right is None:
            return text
        shown = text_of(traces.attempt(right, "ok", 1.0))
        if rng.random() < 0.45:  # a trace of a later round: it took the claim from a tail
            text, shown = (text if rng.random() < 0.2 else ""), f"take {rng.randint(1, 4)}: {claim[7:]}{shown}"
        return text + shown + claim + traces.CLOSE

    def aggregate(self) -> Example:
        """An aggregation prompt and a response that takes a claim, checks it, or searches."""
        rng = self.rng
        numbers, target, found = self.puzzle()
        beta, tau = rng.choice((44, 52, 52, 52, 64, 80, 110)), rng.choice((24, 28, 32, 32, 32, 32, 40))
        rate = rng.choice((0.0, 0.0, 0.2, 0.4, 0.6, 0.9))
        tails: list[Tail] = []
        for _ in range(rng.choice((1, 1, 2, 3, 4, 4, 4, 4))):
            right: Chain | None = rng.choice(found) if rng.random() < rate else None
            value = target
            if rng.random() < 0.1:
                right, value = traces.false_claim(rng, numbers, target, rng.choice(found))
            claim = traces.solved(right, value) if right is not None else ""
            tails.append(self.tail(self.search_text(numbers, target, right, claim), beta, tau))
        builder = Builder(self.vocabulary, self.aggregation(self.question(numbers, target), tails))
        self.respond(builder, numbers, target, found, self.claims(tails), [])
        return builder.build()

    @staticmethod
    def claims(tails: Sequence[Tail]) -> list[Claim]:
        """What the tails claim, each chain of a tail once."""
        found: list[Claim] = []
        for number, tail in enumerate(tails, start=1):
            found += dict.fromkeys((number, chain, value) for chain, value in reading.claims(tail.text))
        return found

    def respond(
        self,
        builder: Builder,
        numbers: Sequence[int],
        target: int,
        found: list[Chain],
        claims: list[Claim],
        failed: list[Chain],
    ) -> None:
        """Take claims until one is correct, or search."""
        rng, start = self.rng, len(builder.trunk)
        taken: dict[Chain, tuple[Pieces, bool]] = {}
        for number, chain, value in rng.sample(claims, len(claims)):
            right = value == target and traces.is_right(chain, numbers, target)
            line = f"take {number}: {traces.expression(chain)} = {value}\n"
            taken.setdefault(chain, ([(line, 2.0), *traces.attempt(chain, "ok" if right else "no", 1.0)], right))
        # Any claim may be taken first: the others become side branches.
        for pieces, _ in list(taken.values())[1:4]:
            builder.fork(pieces, start)
        for chain, (pieces, right) in taken.items():
            builder.extend(pieces)
            if right:
                builder.extend(traces.conclusion(chain, target))
                return
        self.search_on(builder, numbers, target, found, failed)

    def judge(self) -> Example:
        """A prompt that shows the tails of two attempts, and which is right after both are checked."""
        rng = self.rng
        numbers, target, found = self.puzzle()
        tails, claims = [], []
        for rate in rng.choice(((1, 0), (0, 1), (1, 0), (0, 1), (1, 1), (0, 0))):
            right, value = (rng.choice(found), target) if rate else (None, target)
            if right is None and rng.random() < 0.75:
                right, value = traces.false_claim(rng, numbers, target, rng.choice(found))
            claim = traces.solved(right, value) if right is not None else ""
            tails.append(self.tail(self.search_text(numbers, target, right, claim), rng.choice((52, 80)), 32))
            claims.append(reading.claims(tails[-1].text)[-1:])
        prompt = JUDGE.render(problem=self.question(numbers, target).strip(), a=tails[0].text, b=tails[1].text)
        builder = Builder(self.vocabulary, self.prompt(prompt))
        for chain, _ in (claim for both in claims for claim in both):
            verdict = "ok" if traces.is_right(chain, numbers, target) else "no"
            builder.extend(traces.attempt(chain, verdict, 1.0))
        worth = [bool(c) + 2 * any(traces.is_right(chain, numbers, target) for chain, _ in c) for c in claims]
        builder.extend([(traces.CLOSE, 1.0)])
        choice = "A" if worth[0] > worth[1] else "B" if worth[1] > worth[0] else rng.choice("AB")
        builder.extend([(f"\\boxed{{{choice}}}{traces.END}", 1.0 if worth[0] == worth[1] else 2.0)])
        return builder.build()

    def aggregate_harvested(self) -> Example:
        """As `aggregate`, with real tails of the model's own traces."""
        rng, record = self.rng, self.record()
        tau, count = rng.choice((28, 32, 32, 32, 40)), rng.choice((1, 1, 2, 3, 4, 4, 4, 4))
        traces_shown = rng.sample(rng.choice(record.rounds), count)
        if rng.random() < 0.4:  # a puzzle that is mostly solved shows few searches: hide the claims
            traces_shown = [self.before_claim(trace) for trace in traces_shown]
        tails = [self.cut(trace, tau) for trace in traces_shown]
        builder = Builder(self.vocabulary, self.aggregation(self.question(record.numbers, record.target), tails))
        self.respond(builder, record.numbers, record.target, record.solutions, self.claims(tails), record.failed)
        return builder.build()

    def record(self) -> Record:
        """A record; of two drawn, the one with fewer solutions, since the search learns most from hard puzzles."""
        one, other = self.rng.choice(self.records), self.rng.choice(self.records)
        return one if len(one.solutions) <= len(other.solutions) else other

    def before_claim(self, trace: list[int]) -> list[int]:
        """A trace cut before its first attempt that it calls right."""
        text = self.tokenizer.decode(trace)
        before = text[: reading.first_success(text)]
        return self.tokenizer.encode(before) if before else trace[:1]

    def terms(self) -> list[int]:
        """Terms of a sum that is not held out."""
        while True:
            terms = traces.sum_terms(self.rng, self.rng.choice((2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12)))
            if not puzzles.is_held_out(terms, sum(terms)):
                return terms

    def sum(self) -> Example:
        """A running sum from the bare question; side branches do the work of some lines from other values."""
        terms = self.terms()
        builder = Builder(self.vocabulary, self.prompt(traces.sum_question(terms)))
        drilled = [self.rng.randrange(1, len(terms)) for _ in range(DRILLS)]
        for index, line in enumerate(traces.sum_lines(terms, 0, terms[0]), start=1):
            head = line[: line.rindex(":")] if index < len(terms) else ""
            if head:
                builder.extend([(head, 1.0)])
            for _ in range(drilled.count(index)):
                first, *rest = traces.sum_work(round(self.rng.gauss(20, 130)), terms[index])
                builder.fork([(f": {first}", 0.0), *((piece, 2.0) for piece in rest)], len(builder.trunk))
            builder.extend([(line[len(head) :], 2.0)])
        builder.extend([(traces.answer(str(sum(terms))), 1.0)])
        return builder.build()

    def sum_tail(
        self, terms: list[int], start: int, beta: int, tau: int, *, lacks_total: bool = False
    ) -> tuple[Tail, list[tuple[int, int]]]:
        """A tail of a trace that began after line `start`; the lines of it that can be relied on, with their values.

        With `lacks_total` the trace was truncated after the last line, or before it.

        Line 0 is the first term, line `len(terms)` the total. The line before the first complete one is among them,
        since its value begins that line. An error can be seen where its line is shown; a wrong beginning cannot.
        """
        rng, lines = self.rng, []
        value = sum(terms[: start + 1])
        if start and rng.random() < WRONG_BEGINNING:
            value += rng.choice(ERRORS)
        wrong_at = rng.randrange(start + 1, len(terms)) if rng.random() < 0.15 and start + 1 < len(terms) else -1
        states = [(start, value)]
        for index in range(start + 1, len(terms)):
            error = rng.choice(ERRORS) if index == wrong_at else 0
            lines.append(traces.sum_line(terms, index, value, error, early=rng.random() < 0.5))
            value += terms[index] + error
            states.append((index, value))
        end = "" if lacks_total else f"total {value}\n" + traces.CLOSE
        tail = self.tail("".join(lines) + end, beta, tau)
        shown = [number for number, line in enumerate(lines) if line in tail.text]
        known = states[shown[0] : shown[-1] + 2] if shown else []
        if any(states[number + 1][0] == wrong_at for number in shown):
            return tail, [state for state in known if state[0] < wrong_at]
        if f"total {value}\n" in tail.text:
            known.append((len(terms), value))
        return tail, known

    def continue_sum(self) -> Example:
        """Return an aggregation prompt of a running sum. The response continues after its `furthest_line`."""
        rng, terms = self.rng, self.terms()
        start = len(terms) - 1 if rng.random() < 0.15 else int(len(terms) * rng.random() ** 1.5)
        lacks_total = rng.random() < LACKS_TOTAL
        if lacks_total:
            start = max(0, len(terms) - 1 - rng.randint(1, 4))
        beta, tau = rng.choice((40, 48, 56, 64, 64, 72, 96)), rng.choice((32, 32, 36, 40, 48))
        tails, votes = [], Counter[tuple[int, int]]()
        for _ in range(rng.choice((1, 2, 3, 4, 4, 4, 4))):
            begin = max(0, start - rng.choice((0, 0, 0, 1, 2)))
            tail, known = self.sum_tail(terms, begin, beta, tau, lacks_total=lacks_total)
            tails.append(tail)
            votes.update(known)
        builder = Builder(self.vocabulary, self.aggregation(traces.sum_question(terms), tails))
        furthest, value = furthest_line(votes or {(0, terms[0]): 1})
        lines = traces.sum_lines(terms, furthest, value) if furthest < len(terms) else [f"total {value}\n"]
        total = lines[-1].split()[1]
        builder.extend([("".join(lines) + traces.answer(total), 2.0)])
        return builder.build()

    def example(self) -> Example:
        """An example of a random kind."""
        harvested = bool(self.records) and self.rng.random() < HARVESTED_TAILS
        aggregate = self.aggregate_harvested if harvested else self.aggregate
        kinds: dict[str, Callable[[], Example]] = {
            "search": self.search,
            "aggregate": aggregate,
            "sum": self.sum,
            "continue": self.continue_sum,
            "judge": self.judge,
        }
        return kinds[self.rng.choices(list(self.mix), list(self.mix.values()))[0]]()


def write_shards(tokenizer_file: Path, folder: Path, size: int, ahead: int, first: int, seed: int, mix: str) -> None:
    """Keep `ahead` shards of `size` examples in `folder` until the trainer's `stop` file appears."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    number = first
    while not (folder / "stop").exists():
        if len(list(folder.glob("*.pkl"))) >= ahead:
            time.sleep(1.0)
            continue
        records = load_records(folder.parent / "harvest")
        drawer = Drawer(tokenizer, random.Random(f"{seed} {number}"), records, mix)
        examples = [drawer.example() for _ in range(size)]
        part = folder / f"{number:06d}.part"
        part.write_bytes(pickle.dumps(examples))
        part.replace(part.with_suffix(".pkl"))
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Write shards of training examples.")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=1500)
    parser.add_argument("--ahead", type=int, default=6)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mix", choices=list(MIXES), default="main")
    options = parser.parse_args()
    run = partial(write_shards, options.tokenizer, options.folder, options.size, options.ahead)
    run(options.first, options.seed, options.mix)


if __name__ == "__main__":
    main()
