"""`mrsa tune`: predict the time of each profile on this machine from measured speeds and simulated runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import PROFILES, RSAConfig
from ..errors import BackendError, ConfigError, ContextLengthError, MemoryLimitError
from ..hub import CONFIG_FILES, cached_folder
from ..json_strict import loads
from ..text_files import read_text
from .command import PATH, Command, FiniteFloat, json_option, option
from .engine_options import ADAPTER_OPTION, MODEL_OPTION, REVISION_OPTION, SPECULATE_OPTION, ModelChoice, choose_model
from .estimate import QUESTION_TOKENS
from .settings_options import load_settings_files
from .terminal import count, duration, print_lines, print_status, size, table, width_of

if TYPE_CHECKING:
    from ..predict.expected import Prospect
    from ..predict.guesses import Guesses
    from ..predict.length_data import LengthModel
    from ..predict.measure import Speeds
    from ..predict.predict import Prediction, ProfileOnEngine

LENGTHS = "Lengths of traces"
#: Length of a question to the embedded reasoner without recorded runs.
EMBEDDED_QUESTION_TOKENS = 50
#: Columns of the table of speeds.
_MAX_COLUMNS = 8


@click.command(
    "tune",
    cls=Command,
    examples=(
        "mrsa tune",
        "mrsa tune --model mlx-community/Qwen3-1.7B-4bit --minutes 10",
    ),
)
@MODEL_OPTION
@REVISION_OPTION
@ADAPTER_OPTION
@SPECULATE_OPTION
@option("--profile", multiple=True, metavar="NAME", help="A profile to predict, once for each; unset: all that suit.")
@option(
    "--config",
    type=PATH,
    multiple=True,
    metavar="FILE.toml",
    help="Settings of your own to predict, once for each.",
)
@option("--minutes", type=float, metavar="MINUTES", help="Time for one problem; recommends a profile.")
@option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Length of the question; unset: as in the trails.",
)
@option(
    "--memory-limit-gb",
    type=FiniteFloat(),
    metavar="GB",
    help="For weights and caches; unset: most of what is free, on a Mac 70% of the working set.",
)
@option(
    "--kv-bits",
    type=int,
    metavar="BITS",
    help="Bits of each number in the KV cache: 8; unset: as the settings have it.",
)
@option(
    "--seconds",
    type=FiniteFloat(min=1),
    default=60.0,
    metavar="SECONDS",
    help="Approximate measuring time.",
)
@option(
    "--speeds",
    type=PATH,
    metavar="FILE.json",
    help="Output of an earlier mrsa tune --json, to use instead of measuring.",
)
@json_option("Print JSON, the measured speeds included.")
@option(
    "--lengths-from",
    type=PATH,
    multiple=True,
    metavar="PATH",
    help="A trail, or a folder with trails (a benchmark's, for example); unset: the kept runs of this model.",
    panel=LENGTHS,
)
@option(
    "--length-mean",
    type=FiniteFloat(min=1),
    metavar="TOKENS",
    help="Mean of log-normal lengths, before any limit cuts them.",
    panel=LENGTHS,
)
@option(
    "--length-sigma",
    type=FiniteFloat(0, 3),
    default=0.8,
    metavar="X",
    help="Standard deviation of the lengths' logarithm.",
    panel=LENGTHS,
)
def tune(
    model: str | None,
    revision: str | None,
    adapter: Path | None,
    speculate: str | None,
    profile: tuple[str, ...],
    config: tuple[Path, ...],
    minutes: float | None,
    prompt_tokens: int | None,
    memory_limit_gb: float | None,
    kv_bits: int | None,
    seconds: float,
    speeds: Path | None,
    json_output: bool,
    lengths_from: tuple[Path, ...],
    length_mean: float | None,
    length_sigma: float,
) -> None:
    """Predict the time per problem on this machine, by profile.

    Loads the model, measures it for about a minute (decoding by rows and context, reading prompts), and simulates runs
    on the engine's own schedule. Prints minutes, tokens and memory per problem, and with --minutes a recommended
    profile. mrsa plan checks whether a model fits, without loading it.
    """
    from ..predict.guesses import assumed
    from ..predict.predict import candidate, measure_for
    from ..run.sync import run_sync
    from .run import load_orchestrator

    choice = choose_model(model, revision, adapter)
    if profile or config:
        configs = {name: RSAConfig.profile(name) for name in profile}
        configs |= load_settings_files(config, configs, choice.default_profile)
    else:
        configs = {name: each for name, each in PROFILES.items() if (name == "embedded") == choice.embedded}
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes is {minutes:g}; allowed: a number above 0.")
    if length_mean is not None and lengths_from:
        raise ConfigError("--length-mean and --lengths-from exclude each other; give one of them.")
    width = _kv_bits(kv_bits, configs)
    known = None if speeds is None else _speeds_of(speeds, choice.model_id, width)
    lengths = _length_model(choice.model_id, lengths_from, length_mean, length_sigma)
    orchestrator = load_orchestrator(choice, kv_bits=width)
    try:
        engine = _timed_engine(orchestrator.backend)
        print_status(f"Lengths of traces: {lengths.sentence}.")
        if any(each.early_stop != "off" for each in configs.values()):
            print_status("early_stop is not counted: what it saves depends on the answers.")
        engine.limit(None, RSAConfig(memory_limit_gb=memory_limit_gb).engine_limits().memory_limit_bytes)
        question = prompt_tokens
        if question is None and lengths.prompt_tokens is None:
            question = EMBEDDED_QUESTION_TOKENS if choice.embedded else QUESTION_TOKENS
        candidates = [
            candidate(name, each, engine, question_tokens=question, prompt_tokens=lengths.prompt_tokens)
            for name, each in configs.items()
        ]
        _check_one_runs(candidates)
        prospect = _prospect(choice)
        if known is None:
            print_status(f"Measuring for about {seconds:.0f} s ...")
            known = run_sync(measure_for(engine, candidates, lengths.lengths, seconds))
    finally:
        orchestrator.close()
    costs = known.costs()
    guesses = assumed(known.position_cost, embedded=choice.embedded) if speculate != "off" else None
    predictions = [each.predict(lengths.lengths, costs, guesses) for each in candidates]
    report = Report(choice.model_id, width, known, lengths.sentence, predictions, minutes, prospect, guesses)
    if json_output:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print_lines(report.to_text())


def _check_one_runs(candidates: Sequence[ProfileOnEngine]) -> None:
    """Raise the error of candidates of which none would run here, before anything is measured."""
    if not all(each.refused for each in candidates):
        return
    reasons = "\n".join(f"{each.name}: {each.refused}{_remedy(each)}." for each in candidates)
    error = ContextLengthError if all(each.too_long for each in candidates) else MemoryLimitError
    raise error(f"None of the profiles runs here.\n{reasons}")


def _remedy(refused: ProfileOnEngine) -> str:
    """Return which lines of a settings file would fit, as the rest of a sentence."""
    settings = refused.too_long.settings if refused.too_long is not None else {}
    lines = ", ".join(f"{name} = {value}" for name, value in settings.items())
    return f"; a --config FILE.toml with {lines} fits" if lines else ""


def _kv_bits(given: int | None, configs: Mapping[str, RSAConfig]) -> int | None:
    """Return the one width of the KV cache for all settings. Raises `ConfigError` if they differ."""
    widths = {RSAConfig(kv_bits=given).kv_bits} if given is not None else {each.kv_bits for each in configs.values()}
    if len(widths) > 1:
        raise ConfigError("The settings differ in kv_bits, and one engine is measured; give --kv-bits.")
    return widths.pop()


def _speeds_of(path: Path, model_id: str, kv_bits: int | None) -> Speeds:
    """Return the speeds of a file. Raises `ConfigError` if they are another model's, or of another KV cache."""
    model, bits, speeds = read_speeds(path)
    if model != model_id:
        raise ConfigError(f"The speeds in {str(path)!r} are those of {model}, not of {model_id}; measure again.")
    if bits != kv_bits:
        raise ConfigError(
            f"The speeds in {str(path)!r} were measured with kv_bits {bits or 'unset'}, not with "
            f"{kv_bits or 'unset'}; measure again."
        )
    return speeds


def _timed_engine(engine: Any) -> Any:
    """Return the engine. Raises `BackendError` for one whose steps cannot be timed."""
    if not hasattr(engine, "timer"):
        raise BackendError(
            f"The engine {engine.info.engine} cannot be timed; mrsa tune measures models on this machine."
        )
    return engine


def _prospect(choice: ModelChoice) -> Prospect | None:
    """Return what the bandwidth of this machine's chip and published speeds promise, or None if it is no Apple chip."""
    from .. import reasoner
    from ..backends.mlx.device import chip_name
    from ..backends.mlx.memory import model_of_checkpoint
    from ..predict.expected import Prospect
    from ..predict.published import chip_of

    chip = chip_of(chip_name())
    known = cached_folder(choice.model_id, CONFIG_FILES, choice.revision)
    folder = reasoner.model_path() if choice.embedded else known
    if chip is None or folder is None:
        return None
    return Prospect.of_model(chip, model_of_checkpoint(folder, {}))


def _length_model(model_id: str, paths: Sequence[Path], mean: float | None, sigma: float) -> LengthModel:
    """Return the given lengths, otherwise those of recorded runs, otherwise an assumption for the model."""
    from ..predict import length_data

    if mean is not None:
        return length_data.given(mean, sigma)
    if not paths:
        return length_data.for_model(model_id)
    found = length_data.from_paths(paths)
    if found.models - {model_id}:
        print_status(
            f"warning: the trails are of {', '.join(sorted(found.models))}; lengths differ from model to model."
        )
    return found.length_model() if found.finished else length_data.assumed(model_id)


def read_speeds(path: Path) -> tuple[str, int | None, Speeds]:
    """Return the model, its kv_bits and its speeds from a file with the output of `mrsa tune --json`."""
    from ..predict.measure import Speeds

    try:
        values = loads(read_text(path))
        return str(values["model"]), values.get("kv_bits"), Speeds.from_dict(values["speeds"])
    except OSError as error:
        raise ConfigError(f"The speeds file {str(path)!r} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{str(path)!r} is not the output of mrsa tune --json; measure again without --speeds."
        ) from error


@dataclass(frozen=True)
class Report:
    """The output of `mrsa tune`. `minutes` is the time for one problem, if it was given."""

    model: str
    kv_bits: int | None
    speeds: Speeds
    lengths: str
    predictions: Sequence[Prediction]
    minutes: float | None
    prospect: Prospect | None = None
    guesses: Guesses | None = None

    @property
    def recommended(self) -> Prediction | None:
        from ..predict.predict import recommend

        return None if self.minutes is None else recommend(self.predictions, 60 * self.minutes)

    def to_dict(self) -> dict[str, Any]:
        chosen = self.recommended
        return {
            "model": self.model,
            "kv_bits": self.kv_bits,
            "lengths": self.lengths,
            "guesses": None if self.guesses is None else vars(self.guesses),
            "speeds": self.speeds.to_dict(),
            "profiles": [vars(each) for each in self.predictions],
            "minutes": self.minutes,
            "recommended": None if chosen is None else chosen.profile,
            "expected": None if self.prospect is None else self.prospect.to_dict(),
        }

    def to_text(self) -> str:
        parts = [self._speeds(), f"{self._profiles()}\nSpeculation: {self._speculation()}."]
        if self.prospect is not None:
            sentences = [*self.prospect.sentences, self.prospect.assumption]
            parts.insert(1, "Predicted without measuring: " + ".\n".join(sentences) + ".")
        if any(each.refused for each in self.predictions):
            parts.append("\n".join(f"{p.profile}: {p.refused}." for p in self.predictions if p.refused))
        if self.minutes is not None:
            parts.append(self._advice(self.minutes))
        return "\n\n".join(parts)

    def _speeds(self) -> str:
        rows = sorted({point.rows for point in self.speeds.decodes})
        shown = (
            [rows[round(i * (len(rows) - 1) / (_MAX_COLUMNS - 1))] for i in range(_MAX_COLUMNS)]
            if rows[_MAX_COLUMNS:]
            else rows
        )
        tokens, _, seconds = max(read for read in self.speeds.reads if read[1] == 0)
        reading = f"Prompts: {count(tokens / seconds)} tokens/s ({count(tokens)} tokens in one go)."
        speeds = f"{self._decode_speeds(shown)}\n{reading}"
        if not self.speeds.seconds:
            return speeds
        pace = f"the last steps took {self.speeds.slowdown:.2f} times as long as the first ones"
        return f"{speeds}\nMeasured for {self.speeds.seconds:.0f} s; {pace}."

    def _decode_speeds(self, rows: Sequence[int]) -> str:
        """Return a line for each context, or for each number of rows on a terminal that is too narrow for that."""
        by_place = {(point.rows, point.context): point.step_s for point in self.speeds.decodes}
        contexts = sorted({context for _, context in by_place})
        cells = [
            [f"{n / by_place[n, context]:.0f}" if (n, context) in by_place else "-" for n in rows]
            for context in contexts
        ]
        heads = ["rows at once", *map(str, rows)]
        lines = [[f"tokens/s at {count(c)} tokens", *line] for c, line in zip(contexts, cells, strict=True)]
        text, width = table(heads, lines, frozenset(heads[1:])), width_of(sys.stdout)
        if width is None or max(map(len, text.split("\n"))) <= width:
            return text
        heads = ["rows", *map(count, contexts)]
        lines = [[str(n), *speeds] for n, *speeds in zip(rows, *cells, strict=True)]
        return f"Tokens/s by rows at once and context:\n{table(heads, lines, frozenset(heads), width=width)}"

    def _speculation(self) -> str:
        return "no gain is assumed" if self.guesses is None else self.guesses.sentence

    def _profiles(self) -> str:
        heads = ["profile", "per problem", "9 in 10 within", "generated", "read", "traces", "at once", "memory"]
        lines = [
            [
                each.profile,
                duration(each.seconds),
                duration(each.seconds_p90),
                count(each.generated_tokens),
                count(each.prefill_tokens),
                f"{each.traces:.1f}",
                str(each.rows),
                size(each.memory_bytes),
            ]
            for each in self.predictions
            if not each.refused
        ]
        if not lines:
            return "None of the profiles runs here."
        return table(
            heads,
            lines,
            frozenset(heads[1:]),
            width=width_of(sys.stdout),
            optional=("traces", "read", "at once"),
        )

    def _advice(self, minutes: float) -> str:
        time = f"With {minutes:g} minute{'' if minutes == 1 else 's'} per problem"
        chosen = self.recommended
        runnable = [each for each in self.predictions if not each.refused]
        if chosen is None:
            if not runnable:
                return f"{time}: no profile runs here."
            quickest = min(runnable, key=lambda each: each.seconds_p90)
            return (
                f"{time}: no profile finishes in time in 9 of 10 runs; the quickest, {quickest.profile}, takes "
                f"{duration(quickest.seconds_p90)}. --time-budget-s stops a run with its best answer so far."
            )
        larger = [each for each in runnable if each.generated_tokens > chosen.generated_tokens]
        beyond = min(larger, key=lambda each: each.seconds_p90, default=None)
        more = f"; {beyond.profile} would take {duration(beyond.seconds_p90)}" if beyond else ""
        taken = f"{duration(chosen.seconds)} on average, 9 in 10 within {duration(chosen.seconds_p90)}"
        return f"{time}: {chosen.profile} ({taken}{more})."
