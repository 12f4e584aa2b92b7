"""Guess the next tokens of traces, and decide when a guess is worth checking.

A draw is a function of (seed, position) and the logits, so a guessed token is kept exactly when it equals the draw.
Guesses change no token, only how many a step of the model yields. They are copied from the texts of the same run: where
the last tokens of a trace occurred before, in its prompt, in itself or in a sibling, it may continue in the same way.

A step that checks guesses takes longer than a plain one and cannot run ahead. It is made only if it is expected to
yield more tokens per second, judged by the measured times of steps and by how many guesses were right so far.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..policy import MAX_POSITIONS, WIDTHS, best_width, right_guesses
from .sequence import Sequence as Trace

#: Looking at the texts takes time, too: after it was in vain, a step is skipped per so many rows.
ROWS_PER_SKIPPED_STEP = 5

#: The longest equal context that is looked for. The shortest is a pair of tokens.
MAX_MATCH = 12
#: Occurrences of a pair that are compared, the latest ones.
CANDIDATES = 4
#: Positions in one generation of an index. It holds two, at about 250 bytes per position.
INDEX_POSITIONS = 2**15
#: Runs whose texts are kept, the latest ones.
MAX_RUNS = 4

#: Groups of matches by length (the shortest of each) and how often a guess is right before any was checked.
_PRIORS = {2: 0.4, 3: 0.55, 4: 0.7, 6: 0.8, 9: 0.9}
#: Checked guesses that outweigh what was known before.
_PRIOR_WEIGHT = 4.0
#: The weight of earlier checks after each new one, so that the rates follow a trace that changes.
_FADING = 0.9

#: The additional time of a step per position, in steps without guesses, before any was measured.
_POSITION_COST = 0.05
#: Times kept per kind of step, and steps after which they are outdated.
_TIMES, _OUTDATED_STEPS = 8, 256


@dataclass(frozen=True)
class Draft:
    """Guessed tokens of one row, with the length of the match before them and the chance of each to be right."""

    ids: tuple[int, ...] = ()
    match: int = 0
    chance: float = 0.0

    def expected(self, width: int) -> float:
        """Return the expected number of right tokens in a step of `width` positions."""
        return right_guesses(self.chance, min(len(self.ids), width - 1))


class HitRates:
    """How many guesses were right, by the length of the match. `before` holds what was known at the start."""

    def __init__(self, before: HitRates | None = None) -> None:
        self._before = before
        self._right = dict.fromkeys(_PRIORS, 0.0)
        self._checked = dict.fromkeys(_PRIORS, 0.0)

    def chance(self, match: int) -> float:
        """Return the chance that a token guessed by a match of this length is right."""
        group = _group(match)
        prior = _PRIORS[group] if self._before is None else self._before.chance(match)
        return (self._right[group] + _PRIOR_WEIGHT * prior) / (self._checked[group] + _PRIOR_WEIGHT)

    def add(self, match: int, right: int, wrong: int) -> None:
        group = _group(match)
        self._right[group] = _FADING * self._right[group] + right
        self._checked[group] = _FADING * self._checked[group] + right + wrong


def _group(match: int) -> int:
    return max(shortest for shortest in _PRIORS if shortest <= match)


class RunTexts:
    """The texts of one run, indexed by pairs of tokens. The oldest positions are forgotten."""

    def __init__(self) -> None:
        self.rates = HitRates()
        self._recent: dict[tuple[int, int], list[tuple[list[int], int]]] = {}
        self._older: dict[tuple[int, int], list[tuple[list[int], int]]] = {}
        self._positions = 0
        self._last_prompt: tuple[int, ...] = ()

    def add_prompt(self, prompt: tuple[int, ...]) -> list[int]:
        """Return the text of a new trace, which begins with its prompt. Traces of round 0 have the same one."""
        text = list(prompt)
        if prompt != self._last_prompt:
            self._index(text, 0)
            self._last_prompt = prompt
        return text

    def extend(self, text: list[int], ids: Iterable[int]) -> None:
        """Append ids to a text."""
        start = len(text)
        text.extend(ids)
        self._index(text, start)

    def continuation(self, text: list[int], most: int) -> tuple[tuple[int, ...], int]:
        """Return up to `most` ids that followed the longest match of the end of `text`, and the match's length.

        Of equal matches the latest counts. Without any, return no ids.
        """
        pair = (text[-2], text[-1]) if len(text) > 1 else (-1, -1)
        best, longest = None, 0
        for source, position in (*self._recent.get(pair, [])[::-1], *self._older.get(pair, [])[::-1]):
            length = _common_ending(source, position, text)
            if length > longest:
                best, longest = (source, position), length
        if best is None:
            return (), 0
        source, position = best
        return tuple(source[position : position + most]), longest

    def _index(self, text: list[int], start: int) -> None:
        for position in range(max(2, start), len(text)):
            places = self._recent.setdefault((text[position - 2], text[position - 1]), [])
            places.append((text, position))
            if len(places) > CANDIDATES:
                del places[0]
        self._positions += len(text) - start
        if self._positions > INDEX_POSITIONS:
            self._recent, self._older, self._positions = {}, self._recent, 0


def _common_ending(source: list[int], position: int, text: list[int]) -> int:
    """Return how many tokens before `position` of `source` equal the last ones of `text`. The last two do."""
    length, most = 2, min(MAX_MATCH, position, len(text))
    while length < most and source[position - length - 1] == text[-length - 1]:
        length += 1
    return length


class StepTimes:
    """How long steps take, by their rows and the positions of each row. Times are measured as steps are made.

    Other work on the machine makes steps longer, never shorter, so the lower quartile of the latest times counts.
    """

    def __init__(self) -> None:
        self._times: dict[tuple[int, int], deque[float]] = {}
        self._seconds: dict[tuple[int, int], float] = {}  # of the kinds that were measured lately
        self._measured_at: dict[tuple[int, int], int] = {}
        self._position_cost = _POSITION_COST
        self._steps = 0

    def add(self, rows: int, width: int, seconds: float) -> None:
        """Record a step. The first of its kind does not count, since kernels may be compiled for it."""
        self._steps += 1
        kind = (rows, width)
        if kind not in self._times:
            self._times[kind] = deque(maxlen=_TIMES)
            return
        times = self._times[kind]
        times.append(seconds)
        self._seconds[kind], self._measured_at[kind] = sorted(times)[len(times) // 4], self._steps
        if self._steps % _TIMES == 0:
            self._forget_outdated()
        if width > 1:
            self._position_cost = self._median_position_cost()

    def relative(self, rows: int, width: int) -> float | None:
        """Return the time of a step with guesses in plain steps, estimated if none was measured lately.

        None if no plain step of so many rows was.
        """
        plain, measured = self._seconds.get((rows, 1)), self._seconds.get((rows, width))
        if plain is None:
            return None
        return 1 + self._position_cost * rows * (width - 1) if measured is None else measured / plain

    def _forget_outdated(self) -> None:
        for kind, step in list(self._measured_at.items()):
            if self._steps - step > _OUTDATED_STEPS:
                del self._measured_at[kind], self._seconds[kind]
                self._times[kind].clear()
        self._position_cost = self._median_position_cost()

    def _median_position_cost(self) -> float:
        """Return the additional time per position of all rows, in plain steps: the median of what was measured."""
        costs = [
            (seconds / self._seconds[rows, 1] - 1) / (rows * (width - 1))
            for (rows, width), seconds in self._seconds.items()
            if width > 1 and (rows, 1) in self._seconds
        ]
        return max(0.0, statistics.median(costs)) if costs else _POSITION_COST


@dataclass
class _TraceText:
    """The text of a trace in the index of its run, its prompt included, and its own hit rates."""

    run: RunTexts
    ids: list[int]
    rates: HitRates = field(init=False)

    def __post_init__(self) -> None:
        self.rates = HitRates(self.run.rates)


class Speculator:
    """Drafts for the rows of a batch.

    The texts of a run are read when they are needed: at a row's draft, or when it leaves. `enabled` may be changed at
    any time.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.times = StepTimes()
        self._runs: OrderedDict[str, RunTexts] = OrderedDict()
        self._texts: dict[Trace, _TraceText] = {}
        self._skipped = 0  # steps since the texts of the rows were looked at in vain

    def is_worth_waiting(self, rows: Sequence[Trace], most: int = MAX_POSITIONS) -> bool:
        """Return whether to wait for the tokens under way, because the ones after them can probably be guessed."""
        self._skipped += 1
        if not self._fits_positions(rows, most) or self._skipped <= len(rows) // ROWS_PER_SKIPPED_STEP:
            return False
        drafts = [self._draft(row, drafts_allowed(row, len(row.tokens) + 1) + 1) for row in rows]
        after = [Draft(draft.ids[1:], draft.match, draft.chance) for draft in drafts]
        if self._best_width(after, [draft.chance for draft in drafts], most) > 1:
            return True
        self._skipped = 0
        return False

    def drafts(self, rows: Sequence[Trace], most: int = MAX_POSITIONS) -> tuple[int, list[Draft]]:
        """Return the width of the next step, and the drafts of the rows if it is above 1.

        All tokens of the rows must be known. `most` bounds the positions of all rows together.
        """
        if not self._fits_positions(rows, most):
            return 1, []
        drafts = [self._draft(row, drafts_allowed(row, len(row.tokens))) for row in rows]
        width = self._best_width(drafts, [1.0] * len(rows), most)
        if width == 1:
            return 1, []
        return width, [Draft(draft.ids[: width - 1], draft.match, draft.chance) for draft in drafts]

    def checked(self, row: Trace, draft: Draft, right: int) -> None:
        """Learn from a draft of which the first `right` tokens were right."""
        if draft.ids:
            wrong = int(right < len(draft.ids))
            text = self._texts[row]
            text.rates.add(draft.match, right, wrong)
            text.run.rates.add(draft.match, right, wrong)

    def leave(self, rows: Iterable[Trace]) -> None:
        """Read the last tokens of rows that leave the batch, as a source for their siblings."""
        for row in rows:
            if self.enabled:
                self._read(row)
            self._texts.pop(row, None)

    def clear(self) -> None:
        """Forget all texts. The times are kept."""
        self._runs.clear()
        self._texts.clear()

    def _fits_positions(self, rows: Sequence[Trace], most: int) -> bool:
        return self.enabled and 2 * len(rows) <= most and self.times.relative(len(rows), 2) is not None

    def _draft(self, row: Trace, most: int) -> Draft:
        text = self._read(row)
        ids, match = text.run.continuation(text.ids, min(most, WIDTHS[-1] - 1)) if most > 0 else ((), 0)
        return Draft(ids, match, text.rates.chance(match)) if ids else Draft()

    def _best_width(self, drafts: Sequence[Draft], certainty: Sequence[float], most: int) -> int:
        """Return the width that promises the most tokens per second, 1 if guessing does not promise enough.

        `certainty` is the chance of each draft that the token before it will be the expected one.
        """
        if not any(draft.ids for draft in drafts):
            return 1
        rows = len(drafts)

        def expected(width: int) -> float:
            return sum(chance * draft.expected(width) for chance, draft in zip(certainty, drafts, strict=True)) / rows

        return best_width(expected, lambda width: self.times.relative(rows, width), rows, most)

    def _read(self, row: Trace) -> _TraceText:
        text = self._texts.get(row)
        if text is None:
            run = self._run(row.request.run_id)
            text = self._texts[row] = _TraceText(run, run.add_prompt(row.request.prompt_token_ids))
        text.run.extend(text.ids, row.tokens[len(text.ids) - len(row.request.prompt_token_ids) :])
        return text

    def _run(self, run_id: str) -> RunTexts:
        run = self._runs.setdefault(run_id, RunTexts())
        self._runs.move_to_end(run_id)
        while len(self._runs) > MAX_RUNS:
            self._runs.popitem(last=False)
        return run


def drafts_allowed(row: Trace, position: int) -> int:
    """Return how many tokens may be guessed for a row whose next draw is at `position`.

    The last token of a trace is drawn, not guessed. Closing ids (`ThinkingLimit`) are left to plain steps.
    """
    allowed = row.request.max_tokens - position - 1
    limit = row.request.thinking_limit
    if limit is not None and position < limit.position + len(limit.closing_ids):
        allowed = min(allowed, limit.position - position - 1)
    return max(0, allowed)
