"""Decide whether an audit file holds the requested run, which then continues in it. Refuse any other run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..audit import RunState
from ..audit.events import RunSetupEvent, RunStartEvent
from ..audit.log_file import encode_line
from ..backends.base import Engine
from ..config import ADDED_SETTINGS, FREE_SETTINGS, RSAConfig
from ..errors import ResumeError
from ..hub import digest_parts
from ..method.lineage import LINEAGE_VERSION
from ..method.prompts import PromptTemplate, encode_framed, recorded_round_zero
from ..tokenizer import ChatMessage, reserve_marks
from ..tools import Chat, ends_with_question, question_of, record_message
from .audit_log import AuditLog
from .setup import make_start, offered_tools

_DEFAULTS = RSAConfig()
#: The fields of the first line that differ from run to run, and the beginnings of them that may end a torn line.
_OWN_FIELDS = rb'"run_id": "\w*"?|"seed": (?:\d+|null)?|"created_at": .*'
_FIELD_NAMES = (b'"run_id": ', b'"seed": nul', b'"created_at": ')
_TORN_FIELD = b"(?:%b)$" % b"|".join(name[:end] for name in _FIELD_NAMES for end in range(len(name), 0, -1))


def check_same_run(
    history: RunState, *, path: Path, prompt: Chat | Sequence[ChatMessage], config: RSAConfig, engine: Engine
) -> RunSetupEvent:
    """Return the recorded setup. Raise `ResumeError` with the first difference from the requested run."""
    start, setup = history.start, history.setup
    assert start is not None
    assert setup is not None
    chat = Chat.of(prompt)
    if (messages := [record_message(message) for message in chat.messages]) != setup.messages:
        recorded, requested = question_of(setup.messages), chat.question
        if recorded == requested:
            if ends_with_question(setup.messages) and ends_with_question(messages):
                raise _mismatch(path, "chat before the prompt", setup.messages[:-1], messages[:-1])
            raise _mismatch(path, "chat around the prompt", setup.messages, messages)
        raise _prompt_mismatch(path, recorded, requested)
    tools = offered_tools(chat, engine)
    if ([*tools.offered], tools.to_dict()) != (setup.tools, setup.tool_form) if tools else setup.tools:
        raise _mismatch(path, "choice of tools", setup.tools, list(chat.tools))
    check_same_start(start, path=path, config=config, engine=engine)
    if PromptTemplate.load(config.template).source != setup.template_source:
        raise _mismatch(path, "text of the template", setup.template_source, config.template)
    if setup.lineage_version != LINEAGE_VERSION:
        raise _mismatch(path, "version of the lineage hash", setup.lineage_version, LINEAGE_VERSION)
    if setup.model_digest and setup.model_digest != engine.info.model_digest:
        (recorded, adapter), (requested, own) = map(digest_parts, (setup.model_digest, engine.info.model_digest))
        if recorded == requested:
            raise _mismatch(path, "adapter (--adapter)", adapter or "none", own or "none")
        raise _mismatch(path, "content of the model's files", setup.model_digest, engine.info.model_digest)
    digest = engine.info.adapter_digest if config.aggregation_adapter is not None else ""
    if setup.adapter_digest != digest:
        raise _mismatch(path, "aggregation adapter", setup.adapter_digest or "none", digest or "none")
    frame = recorded_round_zero(setup)
    tokenizer = reserve_marks(engine.tokenizer, engine.tokenizer.find_marks(config.thinking_marks))
    if encode_framed(tokenizer, [frame.content_of(setup.prompt_text)], frame)[0] != setup.prompt_token_ids:
        raise _mismatch(path, "tokenizer", f"{len(setup.prompt_token_ids)} ids of the prompt", "another tokenisation")
    if setup.closing_token_ids and not engine.info.closes_thinking:
        raise ResumeError(
            f"The run in {path} keeps tokens for the answer (answer_tokens), and {engine.info.engine} cannot close "
            "unfinished thinking. Resume it on an engine that takes token ids."
        )
    return setup


def check_same_start(start: RunStartEvent, *, path: Path, config: RSAConfig, engine: Engine) -> None:
    """Raise `ResumeError` if the model or a setting of the recorded run differs from the requested one."""
    if start.model_id != engine.info.model_id:
        raise _mismatch(path, "model", start.model_id, engine.info.model_id)
    if start.quantization != engine.info.quantization:
        raise _mismatch(path, "quantization of the model", start.quantization, engine.info.quantization)
    for name, value in config.to_dict().items():
        recorded = getattr(start.config, name)
        if name == "aggregation_adapter" and None not in (recorded, value):
            continue  # a folder may have moved: its digest decides
        if name in FREE_SETTINGS or recorded == value or (name == "seed" and value is None):
            continue
        # A file of an earlier version is resumed by the command that made it, which leaves the setting out.
        is_older = name in ADDED_SETTINGS and recorded == ADDED_SETTINGS[name] and value == getattr(_DEFAULTS, name)
        if not is_older and (name, recorded, value) != ("answer_kind", "math", "auto"):
            raise _mismatch(path, name, recorded, value)


def check_may_restart(log: AuditLog, *, prompt: str, config: RSAConfig, engine: Engine) -> None:
    """Raise an `AuditError` unless the file is empty or holds only the start of the requested run.

    A crash can leave such a file, whose last line may be torn. Nothing is lost when that run starts again.
    """
    if log.path is None or not log.recorded.content:
        return
    torn = log.recorded.content[log.recorded.complete_bytes :]
    if log.recorded.start is not None:
        check_same_start(log.recorded.start, path=log.path, config=config, engine=engine)
        if log.recorded.start.prompt != prompt:
            raise _prompt_mismatch(log.path, log.recorded.start.prompt, prompt)
        is_own = b'{"event": "run_setup"'.startswith(torn[:21])
    else:
        seeded = config.replace(seed=config.seed or 0)
        line = encode_line(make_start("", prompt=prompt, config=seeded, engine=engine))
        begun = re.sub(_TORN_FIELD, b"", re.sub(_OWN_FIELDS, b"", torn.rstrip(b"\0")))
        is_own = re.sub(_OWN_FIELDS, b"", line).startswith(begun)
    if not is_own:
        raise ResumeError(f"The audit file {log.path} does not begin with the requested run. Write to another file.")


def _mismatch(path: Path, name: str, recorded: object, requested: object) -> ResumeError:
    """Return the error for a file that holds another run."""
    return ResumeError(
        f"The audit file {path} holds a run with another {name}: {_short(recorded)} there, {_short(requested)} "
        "requested. Request the same run, or write to another file."
    )


def _prompt_mismatch(path: Path, recorded: str, requested: str) -> ResumeError:
    """Return the error for another prompt. It shows both from shortly before the first difference."""
    pairs = enumerate(zip(recorded, requested, strict=False))
    differ = next((i for i, (a, b) in pairs if a != b), min(len(recorded), len(requested)))
    near = max(0, differ - 20)
    return _mismatch(path, "prompt", recorded[near:], requested[near:])


def _short(value: object) -> str:
    if isinstance(value, str) and len(value) > 78:
        value = value[:75] + "..."
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
