"""Errors in the form that clients of the OpenAI protocol read: a status, a message and a code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import JSONResponse

from ..errors import MarkovianRSAError

#: HTTP status of each error kind. Any other kind is an error of the server.
_STATUS: Final = {
    "invalid_setting": 400,
    "invalid_prompt": 400,
    "invalid_template": 400,
    "context_length_exceeded": 400,
    "insufficient_memory": 400,
    "resume_mismatch": 409,
    "generation_failed": 502,
    "run_failed": 502,
    "model_unavailable": 503,
    "audit_unavailable": 503,
    "stopped": 503,
}
#: Settings in error messages, and the body keys or flags that set them.
_BODY_KEYS: Final = {
    "rounds": "rsa_t",
    "population": "rsa_n",
    "aggregation_size": "rsa_k",
    "thinking_tokens": "short_resp_len",
    "tail_tokens": "tail_window_len",
    "final_tokens": "max_tokens",
    "final_candidates": "rsa_final_n",
    "memory_limit_gb": "--memory-limit-gb",
}
_SETTING = re.compile(r"\b(" + "|".join(_BODY_KEYS) + r")\b")


class RequestError(Exception):
    """A request that was refused or that failed. `code` is for programs, `param` names the invalid key."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "invalid_value",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the error object of the OpenAI protocol."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the HTTP response that reports this error."""
        return JSONResponse(self.body(), self.status, self.headers)


#: An unexpected error. Details go to the log, never to the client.
INTERNAL_ERROR: Final = RequestError(
    500, "The server failed unexpectedly. This is a bug; the server's log has the details.", "internal_error"
)


def to_request_error(error: MarkovianRSAError) -> RequestError:
    """Convert one of the package's errors, naming settings by their body keys."""
    message = _SETTING.sub(lambda match: _BODY_KEYS[match[0]], str(error))
    return RequestError(_STATUS.get(error.kind, 500), message, error.kind)
