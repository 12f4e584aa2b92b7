"""Tool calls: the tools of a chat, the forms in which models write calls, and the calls in an answer.

The form is that of the model's chat template: mlx-lm's parsers read most of them, and `read_zaya_calls` that of ZAYA.
If the template has tools in no known form, they are described in the system message, and calls and results are ordinary
text (`GENERIC`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from .json_strict import loads, replace_surrogates
from .tokenizer import ChatMessage, Tokenizer

#: Limit on the calls of one message.
MAX_CALLS: Final = 128
#: Names of functions, as OpenAI's protocol and others allow them.
NAME_PATTERN: Final = r"^[a-zA-Z0-9_.:/-]{1,128}$"
#: Characters of one call that are parsed, since parsers may take quadratic time. A longer one is text.
_MAX_CALL_CHARACTERS: Final = 200_000
#: Marks within a call that are tokens of their own in the model's vocabulary, by parser.
_INNER_MARKS: Final[Mapping[str, tuple[str, ...]]] = {
    "mistral": ("[ARGS]", "[CALL_ID]"),
    "kimi_k2": ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    "gemma4": ('<|"|>',),
    "function_gemma": ("<escape>",),
}
#: Parsers of mlx-lm that are not used: the marks of the form are also those of the thinking.
_UNUSED_PARSERS: Final = frozenset({"kimi_k3"})

ToolChoice = Literal["auto", "required"]


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool. `arguments` is the JSON text of an object. `id` is unique in a chat, "" until it is known."""

    name: str
    arguments: str
    id: str = ""

    @property
    def canonical(self) -> str:
        """The call in the form that all calls with equal arguments have."""
        return f"{self.name}({_canonical_json(json.loads(self.arguments))})"


@dataclass(frozen=True)
class Chat:
    """A chat to answer, and the tools that the answer may call.

    The question is the last message of the user. Calls, results and texts may follow it. `tools` are objects of
    OpenAI's form, `{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}`.
    `tool_choice` "required" asks for a call, and `parallel_tool_calls` False for one at most.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True

    @classmethod
    def of(cls, prompt: Prompt) -> Chat:
        """Return a question, or a chat without tools, as a chat."""
        if isinstance(prompt, Chat):
            return prompt
        return cls((ChatMessage(role="user", content=prompt),) if isinstance(prompt, str) else tuple(prompt))

    @property
    def question(self) -> str:
        """The last message of the user, "" if there is none."""
        return question_of(self.messages)


Prompt = str | Sequence[ChatMessage] | Chat


def question_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the last message of the user, "" if there is none."""
    return next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")


def ends_with_question(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if the question is the last message, without calls and results after it."""
    return bool(messages) and messages[-1]["role"] == "user"


def waits_for_answer(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if a chat ends with its question, or with the result of a call somewhere after it."""
    return ends_with_question(messages) or (
        bool(messages) and messages[-1]["role"] == "tool" and any(message["role"] == "user" for message in messages)
    )


def record_message(message: ChatMessage) -> dict[str, str]:
    """Return a message as `run_setup` records it: the calls as JSON text."""
    record = {name: str(value) for name, value in message.items() if name != "tool_calls"}
    if calls := message.get("tool_calls"):
        record["tool_calls"] = json.dumps(calls, ensure_ascii=False)
    return record


def recorded_message(record: Mapping[str, str]) -> ChatMessage:
    """Return a recorded message. Raise ValueError for an invalid one."""
    if not {"role", "content"} <= set(record) <= set(ChatMessage.__annotations__):
        raise ValueError("a message needs a role and a content, and has unknown fields or none of them")
    message = ChatMessage(role=record["role"], content=record["content"])
    for name in ("tool_call_id", "name"):
        if name in record:
            message[name] = record[name]
    if "tool_calls" in record:
        calls = loads(record["tool_calls"])
        if not (isinstance(calls, list) and calls and all(map(is_call, calls))):
            raise ValueError("tool_calls are not a list of calls")
        message["tool_calls"] = calls
    return message


def without_surrogates(chat: Chat) -> Chat:
    """Return the chat with U+FFFD in the place of each lone surrogate."""
    known = [{name: value for name, value in m.items() if name in ChatMessage.__annotations__} for m in chat.messages]
    messages, tools = loads(replace_surrogates(json.dumps([known, chat.tools], ensure_ascii=False)))
    return replace(chat, messages=tuple(messages), tools=tuple(tools))


# The forms of calls


@dataclass(frozen=True)
class ToolForm:
    """How a model writes calls: from the text `begin` to the text `end`, in the form that `parser` reads.

    `parser` is "generic", "zaya_xml" or a module of mlx_lm.tool_parsers. `end` is "" if a call lasts until the end of
    the answer. `tokens` are the ids of the marks that are tokens of their own: their texts are shown in an answer.
    """

    parser: str
    begin: str
    end: str
    tokens: Mapping[str, int] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the form as `run_setup` records it."""
        return {"parser": self.parser, "begin": self.begin, "end": self.end, "tokens": dict(self.tokens)}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any]) -> ToolForm | None:
        """Return a recorded form, or None for a run without tools or an invalid record."""
        parser, begin, end, tokens = (recorded.get(name) for name in ("parser", "begin", "end", "tokens"))
        if not (isinstance(parser, str) and re.fullmatch(r"\w{1,40}", parser)):
            return None
        if not (isinstance(begin, str) and begin and isinstance(end, str) and isinstance(tokens, dict)):
            return None
        if not all(isinstance(text, str) and text and type(token) is int for text, token in tokens.items()):
            return None
        return cls(parser, begin, end, tokens)

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts of all its marks."""
        return tuple(mark for mark in (self.begin, self.end, *_INNER_MARKS.get(self.parser, ())) if mark)

    def of_vocabulary(self, token_id: Callable[[str], int | None]) -> ToolForm:
        """Return the form with the ids of its marks. `token_id` returns the id of a text that is one token."""
        found = {mark: token_id(mark) for mark in self.marks}
        tokens = {mark: token for mark, token in found.items() if token is not None}
        return ToolForm(self.parser, self.begin, self.end, tokens)

    def parse(self, body: str, tools: Sequence[Mapping[str, Any]]) -> list[ToolCall]:
        """Return the calls in the text between the marks. Raise ValueError if it is not a call of one of the tools."""
        if len(body) > _MAX_CALL_CHARACTERS:
            raise ValueError(f"a call has more than {_MAX_CALL_CHARACTERS:,} characters")
        if self.parser == "gemma4" and not _has_closed_braces(body):  # its parser would try all pairs of braces
            raise ValueError("a brace is not closed")
        offered = [tool["function"]["name"] for tool in tools]
        try:
            found = _parser(self.parser)(body, list(tools))
            calls = [_checked(call, offered) for call in (found if isinstance(found, list) else [found])]
        except Exception as error:  # parsers raise errors of many types for a text of another form
            raise ValueError(f"not a call ({error})") from error
        if not calls:
            raise ValueError("not a call")
        return calls


GENERIC: Final = ToolForm("generic", "<tool_call>", "</tool_call>")
ZAYA: Final = ToolForm("zaya_xml", "<zyphra_tool_call>", "</zyphra_tool_call>")


def find_form(
    template: str, token_id: Callable[[str], int | None], mlx_form: tuple[str, str, str] | None = None
) -> ToolForm | None:
    """Return the form of calls of a chat template, or None if it has no tools, or none in a known form.

    `mlx_form` are the parser that mlx-lm chose for the template, and its marks.
    """
    if ZAYA.begin in template:
        return ZAYA.of_vocabulary(token_id)
    if mlx_form is None or "tools" not in template or mlx_form[0] in _UNUSED_PARSERS:
        return None
    return ToolForm(*mlx_form).of_vocabulary(token_id)


def form_of(tokenizer: Tokenizer) -> ToolForm:
    """Return the form in which the model of a tokenizer writes calls."""
    own = getattr(tokenizer, "tool_form", None)
    return own if own is not None else GENERIC.of_vocabulary(tokenizer.reserved.get)


def show_marks(decode: Callable[[Sequence[int]], str], tokens: Mapping[str, int]) -> Callable[[Sequence[int]], str]:
    """Return `decode` with the texts of these tokens, which it may leave out, in their places."""
    if not tokens:
        return decode
    texts = {token: text for text, token in tokens.items()}

    def shown(ids: Sequence[int]) -> str:
        pieces, start = list[str](), 0
        for index, token in enumerate(ids):
            if token in texts:
                pieces += [decode(ids[start:index]) if index > start else "", texts[token]]
                start = index + 1
        return "".join(pieces) + (decode(ids[start:]) if start < len(ids) or not pieces else "")

    return shown


def _parser(name: str) -> Callable[[str, list[Mapping[str, Any]]], Any]:
    if name == GENERIC.parser:
        return lambda body, tools: loads(body.strip())
    if name == ZAYA.parser:
        return read_zaya_calls
    parse: Callable[[str, list[Mapping[str, Any]]], Any] = importlib.import_module(
        f"mlx_lm.tool_parsers.{name}"
    ).parse_tool_call
    return parse


def _has_closed_braces(body: str) -> bool:
    """Return True if each brace outside the texts of Gemma's form is closed."""
    depth = 0
    for brace in re.findall(r"[{}]", re.sub(r'<\|"\|>.*?<\|"\|>', "", body, flags=re.DOTALL)):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def _checked(call: Any, offered: Sequence[str]) -> ToolCall:
    """Return a parsed call of an offered tool. Raise ValueError for anything else."""
    name, arguments = (call.get("name"), call.get("arguments", {})) if isinstance(call, dict) else (None, None)
    if isinstance(arguments, str):
        arguments = loads(arguments) if arguments.strip() else {}
    if not isinstance(name, str) or name not in offered:
        raise ValueError("no tool has this name")
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are not an object")
    return ToolCall(name, replace_surrogates(json.dumps(arguments, ensure_ascii=False, allow_nan=False)))


def _canonical_json(value: Any) -> str:
    """Return the JSON text that all equal values have: sorted keys, and whole numbers without a fraction."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: plain(each) for key, each in item.items()}
        if isinstance(item, list):
            return [plain(each) for each in item]
        return int(item) if isinstance(item, float) and item.is_integer() else item

    return json.dumps(plain(value), ensure_ascii=False, sort_keys=True)


# ZAYA's form: <function=NAME>, and in it <parameter=NAME>VALUE</parameter> or <name> and <value> elements.

_FUNCTION = re.compile(r"<function(?:=([^>\n]*)>|>\s*(?:<name>([^<\n]*)</name>|([^<\n]+)))")
_PARAMETER = re.compile(r"<parameter(?:=([^>\n]*)>|>\s*<name>([^<\n]*)</name>\s*<value>)")
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def read_zaya_calls(body: str, tools: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Return the calls in a text of ZAYA's form, as names and arguments. Raise ValueError if there is none.

    `<br>` in a value stands for a line break. A value is a JSON value unless its schema asks for a string.
    """
    if body.lstrip().startswith("{"):
        return [loads(body.strip())]
    types = {tool["function"]["name"]: _types(tool["function"]) for tool in tools}
    calls, at = list[dict[str, Any]](), 0
    while (function := _FUNCTION.search(body, at)) is not None:
        name = next(group for group in function.groups() if group is not None).strip()
        inner, at = _element(body, function.end(), "</function>")
        arguments, place = dict[str, Any](), 0
        while (parameter := _PARAMETER.search(inner, place)) is not None:
            value, place = _element(inner, parameter.end(), "</parameter>")
            key = (parameter[1] if parameter[2] is None else parameter[2]).strip()
            if parameter[2] is not None:
                value = value.rpartition("</value>")[0] or value
            arguments[key] = _zaya_value(value, types.get(name, {}).get(key))
        calls.append({"name": name, "arguments": arguments})
    if not calls:
        raise ValueError("no function is called")
    return calls


def _element(text: str, start: int, end: str) -> tuple[str, int]:
    """Return the text of an element from `start`, and where the text after it begins."""
    at = text.find(end, start)
    return (text[start:], len(text)) if at < 0 else (text[start:at], at + len(end))


def _types(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the type that the schema of a function names for each parameter."""
    properties = (function.get("parameters") or {}).get("properties")
    if not isinstance(properties, dict):
        return {}
    return {name: schema.get("type") for name, schema in properties.items() if isinstance(schema, dict)}


def _zaya_value(text: str, type_name: Any) -> Any:
    text = text.removeprefix("\n").removesuffix("\n")
    quoted = len(text) > 1 and text.startswith('"') and text.endswith('"')
    if type_name == "string" and not quoted:
        return _BREAK.sub("\n", text)
    if type_name in ("boolean", "null") and text.strip() in ("True", "False", "None"):  # as templates write them
        return {"True": True, "False": False, "None": None}[text.strip()]
    try:
        value = json.loads(text, strict=False, parse_constant=lambda name: name)
    except ValueError:
        value = text
    return _with_breaks(value)


def _with_breaks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_breaks(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_breaks(item) for item in value]
    return _BREAK.sub("\n", value) if isinstance(value, str) else value


# The calls in an answer


class CallScanner:
    """Divides a growing answer into text and calls. Text that may begin a call is held back.

    What is between the marks but not a call stays text, and so does a call without an end, unless the model ended the
    answer there. Calls beyond `limit` are dropped.
    """

    def __init__(self, form: ToolForm, tools: Sequence[Mapping[str, Any]], limit: int = MAX_CALLS) -> None:
        self._form, self._tools, self._limit = form, tools, limit
        self._held, self._inside = "", False
        self.count = 0  #: the number of calls so far

    def feed(self, text: str) -> list[str | ToolCall]:
        """Append a piece of the answer, and return the texts and calls that are certain."""
        found = list[str | ToolCall]()
        # A mark may begin in what is held back, and what is held back within a call was searched before.
        start = max(0, len(self._held) - len(self._form.end)) if self._inside else 0
        self._held += text
        while True:
            mark = self._form.end if self._inside else self._form.begin
            at = self._held.find(mark, start) if mark else -1
            if at < 0:
                break
            piece, self._held, start = self._held[:at], self._held[at + len(mark) :], 0
            found += self._calls(piece, mark) if self._inside else [piece]
            self._inside = not self._inside
        if not self._inside:
            certain = len(self._held) - _overlap(self._held, self._form.begin)
            found.append(self._held[:certain])
            self._held = self._held[certain:]
        return [item for item in found if item]

    def end(self, *, finished: bool) -> list[str | ToolCall]:
        """Return the rest. `finished`: the model ended the answer, rather than a limit or a stop text."""
        rest, self._held, inside = self._held, "", self._inside
        self._inside = False
        if not inside:
            return [rest] if rest else []
        return self._calls(rest, "") if finished else [self._form.begin + rest]

    def _calls(self, body: str, end: str) -> list[str | ToolCall]:
        try:
            calls = self._form.parse(body, self._tools)
        except ValueError:
            return [self._form.begin + body + end]
        kept = calls[: max(0, self._limit - self.count)]
        self.count += len(kept)
        return list(kept)


def _overlap(text: str, mark: str) -> int:
    """Return the length of the end of `text` that may be the beginning of the mark."""
    sizes = range(min(len(text), len(mark) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(mark[:size])), 0)


@dataclass(frozen=True)
class Tools:
    """The tools of a run, and the form in which its traces call them, as `run_setup` records them."""

    offered: tuple[dict[str, Any], ...]
    form: ToolForm
    choice: ToolChoice = "auto"
    parallel: bool = True

    @classmethod
    def of(cls, tools: Sequence[dict[str, Any]], recorded: Mapping[str, Any]) -> Tools | None:
        """Return the tools of a record, or None for a run without tools or an invalid record."""
        form = ToolForm.from_dict(recorded)
        if not tools or form is None or not all(map(is_tool, tools)):
            return None
        choice: ToolChoice = "required" if recorded.get("choice") == "required" else "auto"
        return cls(tuple(tools), form, choice, recorded.get("parallel") is not False)

    def to_dict(self) -> dict[str, Any]:
        """Return the form and the choice as `run_setup` records them."""
        return self.form.to_dict() | {"choice": self.choice, "parallel": self.parallel}

    def call_schemas(self) -> list[dict[str, Any]]:
        """Return JSON Schemas of what follows the mark of a call, the strictest first. Empty: it is not JSON."""
        if self.form.parser not in (GENERIC.parser, "json_tools"):
            return []
        objects = [{"type": "object"}] * len(self.offered)
        parameters = [tool["function"].get("parameters") or {"type": "object"} for tool in self.offered]
        return [{"anyOf": self._calls_with(schemas)} for schemas in (parameters, objects)]

    def _calls_with(self, schemas: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return a schema of a call for each tool, with these schemas of the arguments.

        Each of them gets an `$id`: a `$ref` such as `#/$defs/City` counts from there, not from the whole schema.
        """
        names = [tool["function"]["name"] for tool in self.offered]
        return [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {**schema, "$id": f"mrsa:/tools/{index}/"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for index, (name, schema) in enumerate(zip(names, schemas, strict=True))
        ]

    def scanner(self) -> CallScanner:
        """Return what divides one answer into text and calls."""
        return CallScanner(self.form, self.offered, MAX_CALLS if self.parallel else 1)

    def split(self, answer: str, *, finished: bool) -> tuple[str, list[ToolCall]]:
        """Return the text around the calls of an answer, and the calls."""
        scanner = self.scanner()
        items = [*scanner.feed(answer), *scanner.end(finished=finished)]
        text = "".join(item for item in items if isinstance(item, str)).strip()
        return text, [item for item in items if isinstance(item, ToolCall)]

    def canonical(self, answer: str, *, finished: bool) -> str:
        """Return the calls of an answer in a form that equal calls have in any order, or "" if it has no calls."""
        _, calls = self.split(answer, finished=finished)
        return "; ".join(sorted(call.canonical for call in calls))


def recorded_chat(messages: Sequence[Mapping[str, str]], tools: Tools | None) -> Chat:
    """Return the chat of a record. Raise ValueError for an invalid message."""
    chat = tuple(map(recorded_message, messages))
    return Chat(chat, tools.offered, tools.choice, tools.parallel) if tools else Chat(chat)


def call_id(origin: str, index: int) -> str:
    """Return the id of a call in the answer of a trace. Some chat templates require its nine letters and digits."""
    number = int.from_bytes(hashlib.sha256(f"{origin}|{index}".encode()).digest()[:8], "big")
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return "".join(digits[number // 36**place % 36] for place in range(9))


# The generic form: tools, calls and results as plain text


def is_tool(tool: Any) -> bool:
    """Return True for an object that describes a function in OpenAI's form."""
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return isinstance(name, str) and re.match(NAME_PATTERN, name) is not None


def is_call(call: Any) -> bool:
    """Return True for a call in a message: a name and an object of arguments. A model may have called by any name."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return False
    return isinstance(function.get("name"), str) and isinstance(function.get("arguments"), dict)


def has_tool_parts(messages: Iterable[ChatMessage]) -> bool:
    """Return True if a message calls a tool or has its result."""
    return any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


_INSTRUCTION = """\
You may call the following functions, each described by one line of JSON:

{tools}

To call a function, write its name and its arguments as a JSON object between these marks, and nothing after them:

<tool_call>
{{"name": "the name", "arguments": {{"the parameter": "its value"}}}}
</tool_call>

The result follows between <tool_response> and </tool_response>."""


def plain_messages(messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """Return the chat in the generic form: tools, calls and results are text."""
    plain = list[ChatMessage]()
    for message in messages:
        role, content = message["role"], message["content"]
        if message.get("tool_calls"):
            content = "\n".join([content] * bool(content) + [write_call(call) for call in message["tool_calls"]])
        elif role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        plain.append(ChatMessage(role=role, content=content))
    if tools:
        lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        first = next((index for index, message in enumerate(plain) if message["role"] != "system"), len(plain))
        plain.insert(first, ChatMessage(role="system", content=_INSTRUCTION.format(tools=lines)))
    return merge_neighbours(plain)


def write_call(call: Mapping[str, Any]) -> str:
    """Return a call of a message in the generic form. Its arguments are an object, or the JSON text of one."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = loads(arguments or "{}")
    function = {"name": name, "arguments": arguments}
    return f"{GENERIC.begin}\n{json.dumps(function, ensure_ascii=False)}\n{GENERIC.end}"


def merge_neighbours(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the messages with neighbours of the same role as one, as many templates require it. Results stay apart."""
    merged = list[ChatMessage]()
    for message in messages:
        if merged and merged[-1]["role"] == message["role"] != "tool":
            merged[-1] = _joined(merged[-1], message)
        else:
            merged.append(message)
    return merged


def join_texts(*texts: str | None) -> str:
    """Return the texts with a blank line between them, without those that are empty."""
    return "\n\n".join(text for text in texts if text)


def _joined(first: ChatMessage, second: ChatMessage) -> ChatMessage:
    message = ChatMessage(role=first["role"], content=join_texts(first["content"], second["content"]))
    if calls := [*first.get("tool_calls", ()), *second.get("tool_calls", ())]:
        message["tool_calls"] = calls
    if "name" in first and first["name"] == second.get("name"):
        message["name"] = first["name"]
    return message
