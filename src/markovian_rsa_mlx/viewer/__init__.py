"""Pages that show a run: one self-contained file, or the same page fed by a server's event stream.

Reads audit files only. What models wrote is data here, never markup: it is embedded as compressed base64 and put on the
screen as text. The pages load nothing from anywhere; `policy` says so to the browser.
"""

from __future__ import annotations

from .page import Policy, file_page, live_page, runs_page
from .view_model import ViewStream

__all__ = ["Policy", "ViewStream", "file_page", "live_page", "runs_page"]
