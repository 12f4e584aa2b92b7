"""Keeps a verifier from running a model's code.

Some verifiers hand an answer to `eval`, or to `sympy.parse_expr`, which does. In the worker, from `watch` on, code
that is compiled from a text must be a plain expression (no attributes, imports, functions, underscored names), and
nothing may touch files, processes or the network. Audit hooks cannot be removed: this is for a process of its own.
"""

from __future__ import annotations

import dis
import os
import string
import sys
from types import CodeType

#: What no plain expression compiles to. Loads of attributes are all there is to climb out of a namespace.
_REFUSED_OPERATIONS = ("ATTR", "METHOD", "IMPORT", "FUNCTION", "CLOSURE", "STORE", "DELETE", "YIELD", "AWAIT")
#: Names that take a text and do something with it.
_REFUSED_NAMES = frozenset(
    {"eval", "exec", "compile", "open", "getattr", "setattr", "delattr", "globals", "locals", "vars", "input"}
    | {"breakpoint", "help", "exit", "quit", "memoryview", "type", "sympify", "parse_expr", "lambdify", "preview"}
)
#: Audit events (their beginnings) that a verifier has no business with.
_REFUSED_EVENTS = (
    *("os.", "subprocess.", "shutil.", "socket.", "ctypes.", "mmap.", "pty.", "ftplib.", "http.", "urllib."),
    *("smtplib.", "sqlite3.", "tempfile.", "webbrowser.", "winreg.", "glob.", "fcntl.", "resource.", "signal."),
    *("code.__new__", "sys.addaudithook", "sys.setprofile", "sys.settrace", "cpython.run_", "pickle.", "marshal."),
)
#: ... but for these: imports look at folders and read compiled files.
_ALLOWED_EVENTS = frozenset({"os.listdir", "os.scandir", "marshal.loads", "os.fspath"})
#: How the file names of code begin that an import brings.
_LOADED = (os.sep, "<frozen") if os.name != "nt" else ("<frozen", *(f"{drive}:" for drive in string.ascii_letters))
#: What sympy's `parse_expr` itself runs, each time.
_KNOWN_CODE = compile("from sympy import *", "<string>", "exec")


class RefusedCodeError(Exception):
    """An answer that is more than an expression."""


class Vetting:
    """An audit hook that is idle until `watch`."""

    def __init__(self) -> None:
        self._watching = False
        sys.addaudithook(self._hook)

    def watch(self, watching: bool) -> None:
        self._watching = watching

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._watching:
            return
        if event == "exec":
            self._vet(arguments[0])
        elif event == "open":
            _vet_open(*arguments)
        elif event.startswith(_REFUSED_EVENTS) and event not in _ALLOWED_EVENTS:
            raise RefusedCodeError(f"the answer led to {event}")

    def _vet(self, code: object) -> None:
        # Modules that are imported meanwhile come from files or are frozen.
        if not isinstance(code, CodeType) or code.co_filename.startswith(_LOADED):
            return
        if code == _KNOWN_CODE:
            return
        self._watching = False  # looking at the code is no business of the hook's
        try:
            vet(code)
        finally:
            self._watching = True


def vet(code: CodeType) -> None:
    """Raises `RefusedCodeError` unless the code is a plain expression."""
    for name in code.co_names:
        if name.startswith("_") or name in _REFUSED_NAMES:
            raise RefusedCodeError(f"the answer uses {name}")
    for instruction in dis.get_instructions(code):
        if any(part in instruction.opname for part in _REFUSED_OPERATIONS):
            raise RefusedCodeError(f"the answer is no plain expression ({instruction.opname})")


def _vet_open(path: object, mode: object, flags: object = 0, *_: object) -> None:
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & writes):
        raise RefusedCodeError(f"the answer led to writing {path!r}")
