"""Keep a verifier from running a model's code.

Some verifiers pass an answer to `eval`, or to `sympy.parse_expr`, which calls it. Inside the sandbox, code compiled
from a text must be a plain expression (no attributes, imports, functions or underscored names), and nothing may touch
files, processes or the network. Audit hooks cannot be removed: use this in a process of its own.
"""

from __future__ import annotations

import dis
import os
import string
import sys
from types import CodeType

#: Parts of operations that a plain expression does not need. Attribute loads are the only way out of a namespace.
_REFUSED_OPERATIONS = ("ATTR", "METHOD", "IMPORT", "FUNCTION", "CLOSURE", "STORE", "DELETE", "YIELD", "AWAIT")
#: Names of functions that act on a text.
_REFUSED_NAMES = frozenset(
    {"eval", "exec", "compile", "open", "getattr", "setattr", "delattr", "globals", "locals", "vars", "input"}
    | {"breakpoint", "help", "exit", "quit", "memoryview", "type", "sympify", "parse_expr", "lambdify", "preview"}
)
#: Prefixes of the audit events that a verifier must not cause.
_REFUSED_EVENTS = (
    *("os.", "subprocess.", "shutil.", "socket.", "ctypes.", "mmap.", "pty.", "ftplib.", "http.", "urllib."),
    *("smtplib.", "sqlite3.", "tempfile.", "webbrowser.", "winreg.", "glob.", "fcntl.", "resource.", "signal."),
    *("code.__new__", "sys.addaudithook", "sys.setprofile", "sys.settrace", "cpython.run_", "pickle.", "marshal."),
)
#: Exceptions: imports list folders and read compiled files.
_ALLOWED_EVENTS = frozenset({"os.listdir", "os.scandir", "marshal.loads", "os.fspath"})
#: Prefixes of the file names of imported code.
_LOADED = (os.sep, "<frozen") if os.name != "nt" else ("<frozen", *(f"{drive}:" for drive in string.ascii_letters))
#: Code that sympy's `parse_expr` itself runs at each call.
_KNOWN_CODE = compile("from sympy import *", "<string>", "exec")


class RefusedCodeError(Exception):
    """An answer is more than an expression."""


class Sandbox:
    """An audit hook that is active inside a `with` block."""

    def __init__(self) -> None:
        self._active = False
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self._active = True

    def __exit__(self, *_: object) -> None:
        self._active = False

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._active:
            return
        if event == "exec":
            code = arguments[0]
            # Modules imported meanwhile come from files or are frozen.
            if isinstance(code, CodeType) and not code.co_filename.startswith(_LOADED) and code != _KNOWN_CODE:
                self._active = False  # checking the code causes events itself
                try:
                    require_expression(code)
                finally:
                    self._active = True
        elif event == "open":
            path, mode, flags, *_ = (*arguments, 0)
            writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & writes):
                raise RefusedCodeError(f"the answer led to writing {path!r}")
        elif event.startswith(_REFUSED_EVENTS) and event not in _ALLOWED_EVENTS:
            raise RefusedCodeError(f"the answer led to {event}")


def require_expression(code: CodeType) -> None:
    """Raise `RefusedCodeError` unless the code is a plain expression."""
    for name in code.co_names:
        if name.startswith("_") or name in _REFUSED_NAMES:
            raise RefusedCodeError(f"the answer uses {name}")
    for instruction in dis.get_instructions(code):
        if any(part in instruction.opname for part in _REFUSED_OPERATIONS):
            raise RefusedCodeError(f"the answer is not a plain expression ({instruction.opname})")
