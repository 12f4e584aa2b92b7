"""Errors in the form that clients of a protocol read: a status, a message and a code."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from starlette.responses import JSONResponse

from ..errors import ConfigError, MarkovianRSAError, PromptError, RefusedError, SchemaError
from ..run_store import runs_folder

_log = logging.getLogger(__name__)
#: HTTP status of each error kind. Any other kind is an error of the server.
_STATUS: Final = {
    "invalid_setting": 400,
    "invalid_schema": 400,
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
#: Paths of the Anthropic protocol begin with this one.
MESSAGES_PATH: Final = "/v1/messages"
#: Error types of the Anthropic protocol, by status.
_MESSAGES_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_SETTING = re.compile(r"\b(" + "|".join([*_BODY_KEYS, "response_schema"]) + r")\b")


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

    def messages_body(self) -> dict[str, Any]:
        """Return the error object of the Anthropic protocol."""
        kind = _MESSAGES_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {
            "type": "error",
            "error": {"type": kind, "message": self.message, "details": {"error_code": self.code}},
        }

    def response(self, path: str) -> JSONResponse:
        """Return the HTTP response that reports this error, in the form of the protocol that the path belongs to."""
        is_messages = path == MESSAGES_PATH or path.startswith(f"{MESSAGES_PATH}/")
        return JSONResponse(self.messages_body() if is_messages else self.body(), self.status, self.headers)


#: An unexpected error. Details go to the log, never to the client.
INTERNAL_ERROR: Final = RequestError(
    500, "The server failed unexpectedly. This is a bug; the server's log has the details.", "internal_error"
)


def to_request_error(error: MarkovianRSAError, schema_key: str = "response_format") -> RequestError:
    """Convert one of the package's errors, naming settings by their body keys. `schema_key` is that of the schema."""
    keys = _BODY_KEYS | {"response_schema": schema_key}
    message = _SETTING.sub(lambda match: keys[match[0]], str(error).replace(f"{runs_folder()}{os.sep}", ""))
    if isinstance(error, RefusedError):
        return RequestError(400, message, "upstream_refused")
    param = None
    if isinstance(error, SchemaError):
        param = schema_key
    elif isinstance(error, PromptError):
        param = "messages"
    elif isinstance(error, ConfigError) and (setting := _SETTING.search(str(error))) is not None:
        param = keys[setting[0]]
    return RequestError(_STATUS.get(error.kind, 500), message, error.kind, param)


@contextmanager
def naming_schema(key: str) -> Iterator[None]:
    """Raise errors about the schema of an answer as errors about this key of the body."""
    try:
        yield
    except SchemaError as error:
        raise to_request_error(error, key) from error


def error_body(error: Exception) -> dict[str, Any]:
    """Return the error object of a response that has begun."""
    return reported(error).body()


def reported(error: Exception) -> RequestError:
    """Return the error that a client reads. The log has the details of an unexpected one."""
    if isinstance(error, MarkovianRSAError):
        error = to_request_error(error)
    if not isinstance(error, RequestError):
        _log.error("A response failed", exc_info=error)
        return INTERNAL_ERROR
    return error
