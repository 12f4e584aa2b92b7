"""Measure whether the method helps a model on two standard tasks: `python -m benchmarks.quality [--model FOLDER]`.

    puzzles  200 Countdown puzzles as reasoning-gym draws them, with few solutions or many; three runs of each
    sums     100 sums of 8 to 12 terms, which no trace can finish within beta

All problems are held out from the training of the embedded reasoner, all methods run at F = N = 8. Each part is one
`mrsa bench` command in a folder of its own for these weights, so the same command continues after a break. Prints
tables with 95% intervals and paired tests; `--limit 10 --epochs 1` is a quick try.

`--write` stores the figures in `data/quality.json` and renews the tables of the README and the model card from them;
`--tables` only renews these. The tables stand between the lines `<!-- quality: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.bench.compare import read_folder
from markovian_rsa_mlx.bench.experiment import content_digest
from markovian_rsa_mlx.bench.results import Results, problem_scores
from markovian_rsa_mlx.bench.stats import Interval, difference, paired
from markovian_rsa_mlx.formatting import count, percent, percent_range
from markovian_rsa_mlx.run_store import runs_folder

ROOT = Path(__file__).parents[1]
FIGURES = Path(__file__).parent / "data" / "quality.json"
#: Documents with tables, and which.
DOCUMENTS = {
    ROOT / "README.md": ("summary",),
    ROOT / "src" / "markovian_rsa_mlx" / "reasoner" / "CARD.md": ("puzzles", "sums"),
}
_BLOCK = re.compile(r"(<!-- quality: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """One `mrsa bench` command, and the pairs of methods whose difference it asks for (second minus first)."""

    task: str
    problems: int
    options: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    epochs: int = 1  #: runs of each problem, averaged before the tests

    def words(self, model: str | None = None, limit: int | None = None, epochs: int | None = None) -> list[str]:
        """Return the words of the command; `limit` and `epochs` replace the part's own."""
        size = ["--limit", str(limit or self.problems), "--epochs", str(epochs or self.epochs)]
        return ["bench", "run", self.task, *size, *(["--model", model] if model else []), *self.options]


PARTS = {
    "puzzles": Part(
        "embedded-countdown-unfiltered",
        200,
        (
            *("--profile", "embedded", "--methods"),
            "single,vote,vote-equal,delethink,delethink:majority,markovian,markovian:majority",
        ),
        (("single", "markovian"), ("delethink", "markovian"), ("vote-equal", "markovian:majority")),
        epochs=3,
    ),
    "sums": Part(
        "embedded-chain-sum",
        100,
        (
            *("--profile", "embedded", "--methods", "single,vote,delethink,markovian"),
            *("--grid", str(Path(__file__).parent / "data" / "long_sums.toml")),
            *("--thinking-tokens", "64", "--tail-tokens", "40", "--final-tokens", "64", "--temperature", "0.6"),
        ),
        (("delethink T=4", "markovian T=4"), ("delethink T=8", "markovian T=8")),
    ),
}
#: The differences that the README shows.
_SUMMARY = {("delethink", "markovian"), ("vote-equal", "markovian:majority"), ("delethink T=4", "markovian T=4")}
#: What the methods of `mrsa bench` mean, for readers of the tables.
MEANINGS = {
    "single": "one trace",
    "vote": "the vote of 8 traces",
    "vote-equal": "the vote of 24 traces",
    "delethink": "each trace continues itself (C = 1)",
    "delethink:majority": "the vote of its 8 final candidates",
    "markovian": "Markovian RSA (C = 4)",
    "markovian:majority": "the vote of its 8 final candidates",
}


def folder_of(name: str, model: str | None) -> Path:
    """Return the folder of a part. Other weights under the same name have another folder."""
    digest = content_digest(model or str(reasoner.model_path()))
    return runs_folder().parent / "bench" / f"quality-{name}-{digest}"


def run(name: str, model: str | None, limit: int | None, epochs: int | None) -> Results:
    """Run the missing parts of a benchmark and return its results. Exits if the command fails."""
    folder = folder_of(name, model)
    words = PARTS[name].words(model, limit, epochs)
    code = subprocess.run([sys.executable, "-m", "markovian_rsa_mlx", *words, "--out", str(folder)], check=False)
    if code.returncode:
        raise SystemExit(code.returncode)
    return read_folder(folder)


def figures(name: str, results: Results) -> dict[str, Any]:
    """Return the figures of a part as plain values: all that the tables show."""
    rows = [
        {
            "method": row.method,
            "score": asdict(row.score),
            "finished": row.finished,
            "tokens": row.generated_tokens,
            "rounds": [each.mean.mean for each in row.rounds],
        }
        for row in results.table
    ]
    differences = []
    for first, second in PARTS[name].pairs:
        scores = paired(*(problem_scores(results, results.method(method)) for method in (first, second)))
        found = difference(*scores)
        differences.append(
            {
                "first": first,
                "second": second,
                "difference": asdict(found.interval),
                "better": found.wins,
                "worse": found.losses,
                "p": found.test.p_value,
            }
        )
    return {
        "task": results.task,
        "problems": results.problems,
        "epochs": results.epochs,
        "command": results.command.replace(f"{ROOT}/", ""),
        "engine": dict(results.engine),
        "rows": rows,
        "differences": differences,
    }


def score_text(values: Mapping[str, float]) -> str:
    interval = Interval(**values)
    return f"{percent(interval.mean)} {percent_range(interval.low, interval.high)}"


def method_text(name: str) -> str:
    method, _, point = name.partition(" ")
    meaning = MEANINGS[method]
    return f"`{method}`: {meaning[:-1] + ', ' + point.replace('=', ' = ') + ')' if point else meaning}"


def difference_text(found: Mapping[str, Any]) -> str:
    interval = Interval(**found["difference"])
    points = f"{100 * interval.mean:+.1f} points {percent_range(interval.low, interval.high, '+')}"
    tally = f"better on {found['better']} problems, worse on {found['worse']}"
    return f"- `{found['second']}` minus `{found['first']}`: {points}, {tally}, p = {found['p']:.2g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def epochs_text(part: Mapping[str, Any]) -> str:
    """Return how often each problem was run, to follow other settings."""
    return f", {part['epochs']} runs of each" if part["epochs"] > 1 else ""


def source_text(part: Mapping[str, Any]) -> str:
    """Return how a part was measured."""
    engine = part["engine"]
    return f"Measured with `{part['command']}` ({engine['engine']} {engine['engine_version']}, {engine['dtype']})."


def puzzles_text(part: Mapping[str, Any]) -> str:
    rows = [
        (method_text(row["method"]), score_text(row["score"]), percent(row["finished"]), count(row["tokens"]))
        for row in part["rows"]
    ]
    shown = {"delethink", "markovian"}
    rounds = [
        f"- `{row['method']}` by round: " + ", ".join(map(percent, row["rounds"]))
        for row in part["rows"]
        if row["method"] in shown
    ]
    lines = [*rounds, *map(difference_text, part["differences"])]
    head = ("method", "score [95% interval]", "finished", "tokens per problem")
    intro = (
        f"{part['problems']} puzzles of reasoning-gym with targets to 50, of any number of solutions"
        f"{epochs_text(part)}, N = F = 8, T = 2:"
    )
    return "\n".join((intro, "", table(head, rows), "", *lines, "", source_text(part)))


def sums_text(part: Mapping[str, Any]) -> str:
    rows = [
        (
            method_text(row["method"]),
            score_text(row["score"]),
            ", ".join(f"{100 * share:.0f}" for share in row["rounds"]),
            count(row["tokens"]),
        )
        for row in part["rows"]
    ]
    head = ("method", "score [95% interval]", "mean candidate by round, %", "tokens per problem")
    intro = f"{part['problems']} sums of 8 to 12 two-digit terms{epochs_text(part)}, N = F = 8:"
    differences = map(difference_text, part["differences"])
    return "\n".join((intro, "", table(head, rows), "", *differences, "", source_text(part)))


def summary_text(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the README: scores on both tasks at N = 8, sums at T = 4."""
    puzzles = {row["method"]: row for row in parts["puzzles"]["rows"]}
    sums = {row["method"].removesuffix(" T=4"): row for row in parts["sums"]["rows"]}
    rows = [
        (
            method_text(name),
            score_text(row["score"]),
            count(row["tokens"]),
            *((score_text(sums[name]["score"]), count(sums[name]["tokens"])) if name in sums else ("", "")),
        )
        for name, row in puzzles.items()
    ]
    numbers = f"{parts['puzzles']['problems']} puzzles", f"{parts['sums']['problems']} sums"
    pairs = [each for name in ("puzzles", "sums") for each in parts[name]["differences"]]
    differences = [difference_text(each) for each in pairs if (each["first"], each["second"]) in _SUMMARY]
    settings = f"T = 2{epochs_text(parts['puzzles'])}"
    intro = (
        f"`make quality` runs {numbers[0]} of Countdown as reasoning-gym draws them ({settings}), and {numbers[1]}\n"
        "that no single trace can finish (T = 4), on the embedded model, held out from its training, with 8\n"
        "candidates per method. The score is that of the mean candidate or of the vote, with its 95% interval:"
    )
    head = ("method", numbers[0], "tokens", numbers[1], "tokens")
    return "\n".join((intro, "", table(head, rows), "", *differences))


def render(name: str, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table by its name in the documents."""
    if name == "summary":
        return summary_text(parts)
    return (puzzles_text if name == "puzzles" else sums_text)(parts[name])


def renewed(document: str, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a document with its tables replaced."""
    return _BLOCK.sub(lambda block: f"{block[1]}{render(block[2], parts)}\n{block[3]}", document)


def write_tables(parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Renew the tables of the documents. Raises `ValueError` for a document that lacks one."""
    for path, names in DOCUMENTS.items():
        text = path.read_text(encoding="utf-8")
        found = tuple(block[1] for block in _BLOCK.findall(text))
        if found != names:
            raise ValueError(f"{path} must have the tables {names} (got {found}).")
        path.write_text(renewed(text, parts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", metavar="FOLDER", help="a model's folder; unset: the embedded reasoner")
    parser.add_argument("--limit", type=int, metavar="K", help="only the first K problems of each part")
    parser.add_argument("--epochs", type=int, metavar="K", help="runs of each problem")
    parser.add_argument("--only", choices=list(PARTS), action="append", help="only this part")
    parser.add_argument("--write", action="store_true", help="store the figures and renew the documents")
    parser.add_argument("--tables", action="store_true", help="renew the documents from the stored figures")
    options = parser.parse_args()
    if options.write and (options.model or options.limit or options.epochs or options.only):
        parser.error("--write stores the figures of the embedded reasoner on all problems; leave the other options out")
    if options.tables:
        write_tables(json.loads(FIGURES.read_text(encoding="utf-8")))
        return
    model = str(Path(options.model).resolve()) if options.model else None
    parts = {}
    for name in options.only or PARTS:
        parts[name] = figures(name, run(name, model, options.limit, options.epochs))
        print(f"\n{render(name, parts)}\n", flush=True)
    if options.write:
        FIGURES.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
        write_tables(parts)


if __name__ == "__main__":
    main()
