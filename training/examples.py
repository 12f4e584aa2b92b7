"""One training example: a trunk of tokens and side branches that fork off it.

A branch sees the trunk up to its fork and itself, at the positions that would follow the fork. So several
continuations of one prompt cost one prompt. Each token knows which token predicts it and how much its loss counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from training.traces import Pieces


@dataclass(frozen=True)
class Example:
    """Arrays of one length: ids, position, predictor's index, weight of the loss, branch (0: trunk), fork."""

    ids: np.ndarray
    position: np.ndarray
    source: np.ndarray
    weight: np.ndarray
    branch: np.ndarray
    fork: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def encode_pieces(tokenizer: Tokenizer, pieces: Pieces) -> tuple[list[int], list[float]]:
    """Token ids of the joined pieces, each with the smallest weight of the pieces that it overlaps."""
    text = "".join(piece for piece, _ in pieces)
    of_character = [weight for piece, weight in pieces for _ in piece]
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, [min(of_character[a:b], default=0.0) for a, b in encoding.offsets]


class Builder:
    """Collects trunk and branches of one example."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self.trunk, self.weights = list(prompt), [0.0] * len(prompt)
        self._branches: list[tuple[int, list[int], list[float]]] = []

    def extend(self, pieces: Pieces) -> None:
        """Put `pieces` after the trunk."""
        ids, weights = encode_pieces(self._tokenizer, pieces)
        self.trunk += ids
        self.weights += weights

    def fork(self, pieces: Pieces, at: int) -> None:
        """Add a side branch that continues the trunk's first `at` tokens."""
        self._branches.append((at, *encode_pieces(self._tokenizer, pieces)))

    def build(self) -> Example:
        """The finished example."""
        trunk = len(self.trunk)
        ids, weight = list(self.trunk), list(self.weights)
        position, fork = list(range(trunk)), list(range(1, trunk + 1))
        source, branch = [max(i - 1, 0) for i in range(trunk)], [0] * trunk
        for number, (at, branch_ids, weights) in enumerate(self._branches, start=1):
            start, count = len(ids), len(branch_ids)
            ids += branch_ids
            weight += weights
            position += range(at, at + count)
            source += [at - 1, *range(start, start + count - 1)]
            branch += [number] * count
            fork += [at] * count
        int16 = [np.array(values, dtype=np.int16) for values in (ids, position, source, branch, fork)]
        return Example(int16[0], int16[1], int16[2], np.array(weight, dtype=np.float16), int16[3], int16[4])
