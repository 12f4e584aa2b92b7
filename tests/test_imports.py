"""Every module can be imported before all others, and also without `fcntl`.

A circular import shows only in a process that has imported nothing of the package yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import markovian_rsa_mlx

PACKAGE = markovian_rsa_mlx.__name__
ROOT = Path(markovian_rsa_mlx.__file__).parent
#: Libraries of extras and of platforms. Where one is not installed, modules that need it cannot be imported.
OPTIONAL = {
    "llama_cpp", "mlx", "mlx_lm", "numpy", "pyarrow", "pydantic", "reasoning_gym", "scipy", "sse_starlette",
    "starlette", "uvicorn",
}  # fmt: skip
#: Libraries that most modules need, imported once before the forks.
PRELOADED = (
    "asyncio", "httpx2", "huggingface_hub", "jinja2.sandbox", "mlx_lm.models.base", "pydantic.json_schema",
    "pydantic.fields", "pydantic.main", "rich.live", "sse_starlette", "stamina", "starlette.applications",
    "statistics", "tokenizers", "transformers.models.auto.tokenization_auto", "uvicorn",
)  # fmt: skip
#: Fork for each module and import it in the child. Print a JSON object: module to traceback and missing module.
PROGRAM = """
import contextlib, importlib, json, os, sys, traceback

libraries, modules = json.loads(sys.argv[1])
for library in libraries:
    with contextlib.suppress(ImportError):
        importlib.import_module(library)

def result(module):
    try:
        importlib.import_module(module)
    except ImportError as error:
        return traceback.format_exc(), error.name
    except BaseException:
        return traceback.format_exc(), None
    return "", None

found = {}
for module in modules:
    source, target = os.pipe()
    if os.fork() == 0:
        os.close(source)
        with open(target, "w") as pipe:
            json.dump(result(module), pipe)
        os._exit(0)
    os.close(target)
    with open(source) as pipe:
        text = pipe.read()
    os.wait()
    found[module] = json.loads(text) if text else ["the process ended", None]
print(json.dumps(found))
"""
#: Import all modules in one process without `fcntl`, then write and read an audit file.
WITHOUT_FCNTL = """
import importlib, json, sys

sys.modules["fcntl"] = None
optional, modules = json.loads(sys.argv[1])
found = []
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        if (error.name or "").split(".")[0] not in optional:
            raise
    else:
        found.append(module)
assert sys.modules["fcntl"] is None

from markovian_rsa_mlx.audit import AuditWriter, read_events
from markovian_rsa_mlx.audit.events import ErrorEvent

for mode in ("w", "a"):
    with AuditWriter(sys.argv[2], mode) as writer:
        writer.write(ErrorEvent("run", "stage", "message", True))
assert [event.to_dict()["run_id"] for event in read_events(sys.argv[2])] == ["run", "run"]
print(json.dumps(found))
"""


def module_names() -> list[str]:
    """Return the names of all modules of the package except `__main__`, which runs the command line."""
    names = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in names if not name.endswith("__main__")]


def run_python(program: str, *arguments: str) -> str:
    """Run a program in a new interpreter that finds the package where this one does. Return its output."""
    path = os.pathsep.join([str(ROOT.parent), *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])])
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_every_module_imported_first_succeeds() -> None:
    modules = module_names()
    found = json.loads(run_python(PROGRAM, json.dumps([PRELOADED, modules])))
    assert set(found) == set(modules)
    failed = {
        module: error
        for module, (error, missing) in found.items()
        if error and (missing or "").split(".")[0] not in OPTIONAL
    }
    assert not failed, "\n".join(f"{module}:\n{error}" for module, error in failed.items())


def test_every_module_imported_without_fcntl_succeeds(tmp_path: Path) -> None:
    found = json.loads(
        run_python(WITHOUT_FCNTL, json.dumps([sorted(OPTIONAL), module_names()]), str(tmp_path / "run.jsonl"))
    )
    assert {f"{PACKAGE}.audit", f"{PACKAGE}.orchestrator", f"{PACKAGE}.cli"} <= set(found)
