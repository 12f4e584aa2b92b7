"""Who may import whom (the arrows of the house style), read off the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "markovian_rsa_mlx"
ROOT = Path(__file__).parents[1] / "src" / PACKAGE


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports_of(path: Path, *, at_import: bool = False) -> Iterator[str]:
    """Full names of the modules that a file imports; with `at_import` those within functions left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    skipped = {id(child) for function in functions if at_import for child in ast.walk(function)}
    for node in tree.body:  # imports for annotations only are not arrows
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skipped |= {id(child) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{name}.{alias.name}"
                yield full if is_module(full) else name


@cache
def arrows() -> dict[str, frozenset[str]]:
    return {module_name(path): frozenset(imports_of(path)) for path in sorted(ROOT.rglob("*.py"))}


#: Parts below the top level: packages and modules with rules of their own.
TWO_LEVELS = {
    "audit.state",
    "audit.verify",
    "backends.mlx",
    "backends.upstream",
    "backends.openai",
    "backends.policy",
    "predict.simulator",
    "predict.workload",
    "predict.lengths",
    "predict.costs",
    "predict.guesses",
}


def part(module: str) -> str:
    """The part of the house a module of ours belongs to: `method`, `audit.verify`, `config`..."""
    parts = module.removeprefix(PACKAGE).removeprefix(".").split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in TWO_LEVELS else parts[0] or "package"


def known_to(who: str) -> dict[str, set[str]]:
    """Which other parts each module of part `who` imports."""
    return {
        module: {part(name) for name in imported if name.split(".")[0] == PACKAGE} - {who}
        for module, imported in arrows().items()
        if part(module) == who
    }


GROUND = {
    "confidence",
    "config",
    "errors",
    "content_parts",
    "marks",
    "tokenizer",
    "json_strict",
    "locks",
    "hub",
    "formatting",
    "subprocess_worker",
    "network",
    "redact",
    "tools",
    "text_files",
}
ALLOWED = {
    "redact": set(),
    "errors": {"redact"},
    "network": {"errors", "redact"},
    "blas": {"errors"},
    "confidence": set(),
    "content_parts": set(),
    "formatting": set(),
    "json_strict": set(),
    "locks": set(),
    "marks": set(),
    "tokenizer": {"marks"},
    "text_files": set(),
    "tools": {"errors", "json_strict", "tokenizer"},
    "subprocess_worker": set(),
    "config": {"errors", "text_files"},
    "hub": {"errors", "formatting", "network", "redact"},
    "method": {"text_files", "config", "errors", "marks", "tokenizer", "tools"},
    "equivalence": {"method", "subprocess_worker"},
    "audit": {"config", "errors", "json_strict", "locks", "audit.state"},
    "audit.state": {"audit", "method", "config", "errors", "tools"},
    "audit.verify": {"audit", "audit.state", "method", "confidence", "config", "errors", "marks", "tokenizer", "tools"},
    "run_store": {"audit", "audit.state", "errors", "json_strict", "locks"},
    "export": {"audit", "audit.state", "json_strict"},
    "viewer": {"audit", "audit.state", "method", "config", "text_files", "tools"},
    "models": set(),
    "backends": {"models", *GROUND},
    "backends.policy": {"config", "errors"},
    "backends.mlx": {"backends", "backends.policy", "models", *GROUND},
    "backends.upstream": {"backends", *GROUND},
    "backends.openai": {"backends.upstream"},
    "convert": {"backends.mlx", "models", "hub", "errors", "formatting", "json_strict"},
    "run": {"audit", "audit.state", "audit.verify", "backends", "equivalence", "method", *GROUND},
    "predict.lengths": {"method", "config", "errors"},
    "predict.costs": {"backends.policy", "method", "config", "errors"},
    "predict.guesses": {"backends.policy"},
    "predict.workload": {"predict.lengths", "predict.costs", "backends.policy", "method", "config", "errors"},
    "predict.simulator": {
        "predict.workload",
        "predict.lengths",
        "predict.costs",
        "predict.guesses",
        "backends.policy",
        "method",
        "config",
        "errors",
    },
    "predict": {
        "predict.simulator",
        "predict.workload",
        "predict.lengths",
        "predict.costs",
        "predict.guesses",
        "run",
        "audit",
        "audit.state",
        "run_store",
        "backends",
        "backends.policy",
        "backends.mlx",
        "reasoner",
        "method",
        *GROUND,
    },
    "orchestrator": {
        "run",
        "audit",
        "audit.state",
        "backends",
        "backends.mlx",
        "backends.upstream",
        "package",
        "method",
        "equivalence",
        *GROUND,
    },
    "bench": {
        "viewer",
        "orchestrator",
        "run",
        "audit",
        "audit.state",
        "backends",
        "run_store",
        "reasoner",
        "equivalence",
        "method",
        *GROUND,
    },
    "serve": {
        "package",
        "viewer",
        "orchestrator",
        "run",
        "audit",
        "audit.state",
        "backends",
        "run_store",
        "reasoner",
        "method",
        *GROUND,
    },
}


@pytest.mark.parametrize("who", ALLOWED)
def test_a_part_knows_only_what_it_may_know(who: str) -> None:
    for module, known in known_to(who).items():
        assert known <= ALLOWED[who], f"{module} imports {sorted(known - ALLOWED[who])}"


def test_the_parts_of_the_table_exist() -> None:
    built = {part(module) for module in arrows()}
    assert set(ALLOWED) - built <= {"models"}


def test_nothing_imports_the_command_line() -> None:
    for module, imported in arrows().items():
        if part(module) not in ("cli", "__main__"):
            assert not [name for name in imported if name.startswith(f"{PACKAGE}.cli")], module


def test_torch_is_imported_nowhere() -> None:
    assert not [m for m, imported in arrows().items() if any(name.split(".")[0] == "torch" for name in imported)]


def test_mlx_is_imported_by_the_engine_and_the_models_only() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        home = part(module_name(path))
        if home in ("backends.mlx", "models", "convert"):
            continue
        lazily = home in (
            "cli",
            "bench",
            "serve",
            "hub",
            "blas",
            "backends",
        )  # within a function, where a command needs a tokenizer
        found = imports_of(path, at_import=True) if lazily else imports_of(path)
        assert not [name for name in found if name.split(".")[0] in ("mlx", "mlx_lm")], path


def test_the_method_does_no_io_and_reads_no_clock() -> None:
    forbidden = {"time", "random", "asyncio", "threading", "subprocess", "socket", "os", "secrets", "logging"}
    for module, imported in arrows().items():
        if part(module).startswith("predict."):  # its draws are seeded
            assert not (forbidden - {"random"}) & {name.split(".")[0] for name in imported}, module
        if part(module) == "method":
            assert not forbidden & {name.split(".")[0] for name in imported}, module


HEAVY = ("mlx", "mlx_lm", "transformers", "torch", "math_verify", "sympy", "numpy", "asyncio", "jinja2")


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_the_package_is_cheap() -> None:
    assert not modules_after("import markovian_rsa_mlx; markovian_rsa_mlx.RSAConfig()") & set(HEAVY)


def test_the_orchestrator_needs_no_mlx_until_a_model_is_loaded() -> None:
    assert not modules_after("from markovian_rsa_mlx import MarkovianRSAOrchestrator") & {"mlx", "mlx_lm", "sympy"}
