"""All errors that a user can meet.

Each class is one kind of error. Its message is for the user: what failed, the value, what to do. The command line maps
`exit_code`, a server maps `kind`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .redact import redact

if TYPE_CHECKING:
    from .run.result import RunResult


class MarkovianRSAError(Exception):
    """Base of all errors that are raised on purpose. Secrets of the user are struck out of its message."""

    exit_code = 1
    kind = "error"

    def __init__(self, *values: object) -> None:
        super().__init__(*(redact(value) if isinstance(value, str) else value for value in values))


class ConfigError(MarkovianRSAError):
    """A setting has a value that is not allowed."""

    exit_code = 2
    kind = "invalid_setting"


class SchemaError(ConfigError):
    """The JSON Schema of an answer cannot be used."""

    kind = "invalid_schema"


class PromptError(MarkovianRSAError):
    """A prompt or chat cannot be used as given (empty, no user message)."""

    exit_code = 2
    kind = "invalid_prompt"


class TemplateError(MarkovianRSAError):
    """An aggregation template cannot be read or rendered."""

    exit_code = 2
    kind = "invalid_template"


class ContextLengthError(MarkovianRSAError):
    """The run would need more context than the model has.

    `settings` has lower values of settings with which it would fit, if any are known, and `facts` the message without
    this remedy.
    """

    exit_code = 2
    kind = "context_length_exceeded"

    def __init__(self, message: str, *, facts: str = "", settings: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.facts, self.settings = facts or message, dict(settings or {})


class ModelError(MarkovianRSAError):
    """A model cannot be found, read or run here."""

    kind = "model_unavailable"


class UpstreamError(ModelError):
    """An upstream server refused a request for good, or is gone. The run can be resumed."""


class RefusedError(UpstreamError):
    """An upstream server refused this one request. It may accept others."""


class MemoryLimitError(MarkovianRSAError):
    """Not even one trace fits into the memory that may be used."""

    kind = "insufficient_memory"


class BackendError(MarkovianRSAError):
    """The engine failed on one trace; another attempt may succeed."""

    kind = "generation_failed"


class AuditError(MarkovianRSAError):
    """An audit file cannot be written, read or locked."""

    kind = "audit_unavailable"


class ResumeError(AuditError):
    """The audit file belongs to a run that differs from the requested one."""

    exit_code = 2
    kind = "resume_mismatch"


class VerificationError(AuditError):
    """An audit file contradicts itself."""

    kind = "verification_failed"


class CallbackError(MarkovianRSAError):
    """A callback of the caller raised an exception. The run can be resumed."""

    kind = "callback_failed"


class RunFailedError(MarkovianRSAError):
    """No final candidate is left."""

    kind = "run_failed"


class TaskError(MarkovianRSAError):
    """A benchmark's problems, or a library that it needs, cannot be obtained or used."""

    kind = "task_unavailable"


class ScoringError(MarkovianRSAError):
    """One answer could not be scored: the task's verifier failed on it."""

    kind = "scoring_failed"


class RunStoppedError(MarkovianRSAError):
    """The run was stopped on purpose and can be resumed.

    `reason` is "interrupted", "token_budget" or "time_budget". `partial` is the best result so far (its `text` is None
    if no candidate has an answer yet).
    """

    kind = "stopped"

    def __init__(self, message: str, reason: str, partial: RunResult) -> None:
        super().__init__(message)
        self.reason, self.partial = reason, partial
