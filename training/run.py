"""Makes the embedded reasoner from scratch: `python -m training.run`. Run again, it continues.

Order: tokenizer; main training, with data drawn in a second process; traces of the checkpoint on training
puzzles; training continues with them while the rate is annealed; export into the package; evaluation.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from training import tokenizer
from training.data import Drawer

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "src" / "markovian_rsa_mlx" / "reasoner" / "model"
#: Planned tokens of the whole training, and those of its part before the model's own traces join in.
TOKENS, MAIN_TOKENS = 19_600_000, 12_000_000
HOLD = 0.6


class RecordingTokenizer(tokenizer.ReasonerTokenizer):
    """A tokenizer that keeps every text that it encodes."""

    def __init__(self, inner: Tokenizer) -> None:
        super().__init__(inner)
        self.texts: list[str] = []

    def encode(self, text: str) -> list[int]:
        self.texts.append(text)
        return super().encode(text)


def make_tokenizer(folder: Path) -> None:
    """Find the phrases in examples that a byte-level tokenizer spelled, and build the real one."""
    drawer = Drawer(tokenizer.build([]), random.Random(0))
    drawer.tokenizer = recording = RecordingTokenizer(drawer.vocabulary)
    for _ in range(600):
        drawer.example()
    responses = [
        drawer.vocabulary.decode(d().ids.tolist(), False) for d in (drawer.search, drawer.sum) for _ in range(200)
    ]
    tokenizer.save(tokenizer.build([*recording.texts, *responses]), folder)


def python(module: str, *arguments: object) -> list[str]:
    """The command line of one of this folder's modules."""
    return [sys.executable, "-m", f"training.{module}", *map(str, arguments)]


@contextmanager
def shards(work: Path) -> Iterator[None]:
    """Write shards in a data process during the block. Their numbers follow those of earlier runs."""
    folder = work / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = work / "runs.txt"
    runs = len(stamp.read_text().splitlines()) if stamp.exists() else 0
    stamp.write_text("run\n" * (runs + 1))
    command = python("data", "--tokenizer", work / "model" / "tokenizer.json", "--folder", folder)
    process = subprocess.Popen([*command, "--first", str(runs * 10_000)])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded reasoner.")
    parser.add_argument("--work", type=Path, default=ROOT / "training" / "work")
    work = parser.parse_args().work
    # Spinning threads would fight the data process for its core.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    if not (work / "model" / "tokenizer.json").exists():
        make_tokenizer(work / "model")
    train = python("train", "--work", work, "--assistant", "--tokens", TOKENS, "--hold", HOLD)
    with shards(work):
        subprocess.run([*train, "--stop-at", str(MAIN_TOKENS)], check=True)
    if not (work / "harvest").exists():
        subprocess.run(python("harvest", "--work", work), check=True)
    with shards(work):
        subprocess.run(train, check=True)
    subprocess.run(python("export", "--work", work, "--to", MODEL), check=True)
    subprocess.run(python("evaluate", "--work", work, "--puzzles", 200, "--sums", 100), check=True)


if __name__ == "__main__":
    main()
