"""Makes the embedded reasoner from scratch: `python -m training.run`. Run again, it continues.

Order: the stages of the training, beside which one process draws examples and another samples traces of the
latest checkpoint on training puzzles, to be shown in later examples; export into the package; evaluation.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "src" / "markovian_rsa_mlx" / "reasoner" / "model"
#: The tokenizer stays as it is, so that audit files of earlier versions of the model can be verified.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Stage:
    """A part of the training: its mix of examples, planned tokens, the part of them before annealing, and rates."""

    mix: str
    tokens: int
    hold: float
    muon: float
    adam: float

    def arguments(self) -> list[object]:
        return ["--tokens", self.tokens, "--hold", self.hold, "--muon", self.muon, "--adam", self.adam]


STAGES = (
    Stage("main", 28_000_000, 0.6, 0.02, 0.004),
    Stage("both", 12_500_000, 0.3, 0.01, 0.002),
    Stage("sums", 5_500_000, 0.3, 0.007, 0.0014),
)


def python(module: str, *arguments: object) -> list[str]:
    """The command line of one of this folder's modules."""
    return [sys.executable, "-m", f"training.{module}", *map(str, arguments)]


@contextmanager
def beside(*commands: list[str]) -> Iterator[None]:
    """Run other processes during the block."""
    processes = [subprocess.Popen(command) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def data(work: Path, mix: str) -> list[str]:
    """The command line of the process that writes shards. Their numbers follow those of earlier runs."""
    folder = work / "shards"
    folder.mkdir(exist_ok=True)
    stamp = work / "runs.txt"
    runs = len(stamp.read_text().splitlines()) if stamp.exists() else 0
    stamp.write_text("run\n" * (runs + 1))
    command = python("data", "--tokenizer", work / "model" / "tokenizer.json", "--folder", folder, "--mix", mix)
    return [*command, "--first", str(runs * 10_000)]


def train(stage: Stage, work: Path, before: Path | None) -> None:
    """Run a stage in the folder `work`, or what is left of it. It begins with the weights of the stage in `before`."""
    (work / "model").mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(MODEL / name, work / "model" / name)
    words = python("train", "--work", work, "--assistant", *stage.arguments())
    if before is not None:
        words += ["--begin-with", str(before / "checkpoint.pt")]
        if not (work / "harvest").exists():
            shutil.copytree(before / "harvest", work / "harvest")
    harvest = python("harvest", "--work", work, *(["--after", 0] if before is not None else []))
    with beside(data(work, stage.mix), harvest):
        subprocess.run(words, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded reasoner.")
    parser.add_argument("--work", type=Path, default=ROOT / "training" / "work")
    parser.add_argument("--to", type=Path, default=MODEL, help="the model folder to write")
    options = parser.parse_args()
    # Spinning threads would fight the data process for its core.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    before = None
    for stage in STAGES:
        train(stage, options.work / stage.mix, before)
        before = options.work / stage.mix
    subprocess.run(python("export", "--work", before, "--to", options.to), check=True)
    subprocess.run(python("evaluate", "--work", before, "--puzzles", 200, "--sums", 100), check=True)


if __name__ == "__main__":
    main()
