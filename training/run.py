"""Makes the embedded reasoner from scratch: `python -m training.run`. Run again, it continues.

Order: training, beside which one process draws examples and another samples traces of the latest checkpoint
on training puzzles, to be shown in later examples; export into the package; evaluation.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "src" / "markovian_rsa_mlx" / "reasoner" / "model"
#: Planned tokens of the training, and the part of them before the rate is annealed.
TOKENS, HOLD = 19_000_000, 0.55
#: The tokenizer stays as it is, so that audit files of earlier versions of the model can be verified.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


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


def data(work: Path) -> list[str]:
    """The command line of the process that writes shards. Their numbers follow those of earlier runs."""
    folder = work / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = work / "runs.txt"
    runs = len(stamp.read_text().splitlines()) if stamp.exists() else 0
    stamp.write_text("run\n" * (runs + 1))
    command = python("data", "--tokenizer", work / "model" / "tokenizer.json", "--folder", folder)
    return [*command, "--first", str(runs * 10_000)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded reasoner.")
    parser.add_argument("--work", type=Path, default=ROOT / "training" / "work")
    parser.add_argument("--to", type=Path, default=MODEL, help="the model folder to write")
    options = parser.parse_args()
    work = options.work
    # Spinning threads would fight the data process for its core.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    (work / "model").mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(MODEL / name, work / "model" / name)
    train = python("train", "--work", work, "--assistant", "--tokens", TOKENS, "--hold", HOLD)
    with beside(data(work), python("harvest", "--work", work)):
        subprocess.run(train, check=True)
    subprocess.run(python("export", "--work", work, "--to", options.to), check=True)
    subprocess.run(python("evaluate", "--work", work, "--puzzles", 200, "--sums", 100), check=True)


if __name__ == "__main__":
    main()
