"""Show a run in the browser: as one self-contained file, or as a live page on a server.

Texts of models are data, never markup: they are embedded as compressed base64 and shown as text. A page loads nothing
from a network, and its content security policy has the browser enforce this.
"""

from __future__ import annotations

from .assembly import Links, Policy, shared_script
from .page import RunForm, file_page, live_page, runs_page, write_page
from .view_model import ViewStream

__all__ = [
    "Links",
    "Policy",
    "RunForm",
    "ViewStream",
    "file_page",
    "live_page",
    "runs_page",
    "shared_script",
    "write_page",
]
