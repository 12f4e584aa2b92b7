"""What goes wrong, as clients of the OpenAI protocol read it: a status and one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ..errors import MarkovianRSAError

#: What a mistake of each kind is over HTTP; any other kind is the server's or the engine's trouble.
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
#: Settings as the body calls them.
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
    """A request that is refused or that failed; `code` is for programs, `param` names the key at fault."""

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
        """The JSON object that OpenAI's clients expect."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def to_request_error(error: MarkovianRSAError) -> RequestError:
    """One of our own errors, with settings named as the body names them."""
    message = _SETTING.sub(lambda match: _BODY_KEYS[match[0]], str(error))
    return RequestError(_STATUS.get(error.kind, 500), message, error.kind)


def internal_error() -> RequestError:
    """Something that nobody foresaw; what it was stands in the server's log only."""
    return RequestError(500, "The server failed; its log says why. This is a bug.", "internal_error")
