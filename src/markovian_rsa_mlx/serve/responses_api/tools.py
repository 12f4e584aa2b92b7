"""The tools of a request: the functions that the chat offers for them, and calls as items of a conversation.

A `custom` tool becomes a function with one text, and the functions of a `namespace` get its name in front of theirs.
Other tools run on OpenAI's servers, or need a model that was trained for them: they are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import Field

from ..request import FunctionName, RequestModel, Tolerated
from ..translation import missing, unsupported

_SUPPORTED = ("function", "custom", "namespace")
_MAX_NAME = 128
#: The parameter of the function that stands for a custom tool.
_INPUT = "input"


class CustomFormat(RequestModel):
    """The form of a custom tool's text. The model reads a grammar, which does not bind it."""

    type: str | None = None
    syntax: str | None = None
    definition: str | None = None


class ResponsesTool(RequestModel):
    """A function, a custom tool or a namespace of them. Tools of other types are left out."""

    type: str
    name: FunctionName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    format: CustomFormat | None = None
    tools: Annotated[list[ResponsesTool], Field(max_length=10_000, fail_fast=True)] | None = None
    strict: bool | None = None
    defer_loading: Any = None
    output_schema: Any = None
    allowed_callers: Any = None

    def unknown_keys(self) -> Iterator[str]:
        """Yield the names of unknown keys. A tool that is left out has none."""
        return super().unknown_keys() if self.type in _SUPPORTED else iter(())

    def tolerated(self, path: str) -> Iterator[Tolerated]:
        """Yield this tool if it is left out."""
        if self.type not in _SUPPORTED:
            yield Tolerated(
                f"Tools of the type {self.type[:40]!r} are not supported and left out.",
                unsupported(path, self.type, "function, custom and namespace"),
            )


class ResponsesToolChoice(RequestModel):
    """One tool that must be called, or a selection of the tools."""

    type: str
    name: str | None = None
    namespace: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None


class CallItem(Protocol):
    """An item that calls a tool."""

    @property
    def type(self) -> str | None: ...
    @property
    def call_id(self) -> str | None: ...
    @property
    def name(self) -> str | None: ...
    @property
    def namespace(self) -> str | None: ...
    @property
    def arguments(self) -> Any: ...
    @property
    def input(self) -> str | None: ...


class Called(NamedTuple):
    """A call of a function as an item: its type, the keys that name the tool, and its arguments or text."""

    kind: Literal["function_call", "custom_tool_call"]
    names: dict[str, str]
    text: str


class _Origin(NamedTuple):
    """The tool that a function stands for."""

    name: str
    namespace: str | None
    is_custom: bool


@dataclass(frozen=True)
class OfferedTools:
    """The functions that stand for the tools of a request, and the tools by the names of their functions."""

    functions: list[dict[str, Any]] = field(default_factory=list)
    origins: dict[str, _Origin] = field(default_factory=dict)

    @classmethod
    def of(cls, tools: Sequence[ResponsesTool]) -> OfferedTools:
        """Return the functions of these tools. Raise `RequestError` for a tool without its name or its tools."""
        offered = cls()
        for index, tool in enumerate(tools):
            path = f"tools.{index}"
            if tool.type == "namespace":
                if tool.name is None:
                    raise missing(f"{path}.name")
                if tool.tools is None:
                    raise missing(f"{path}.tools")
                for place, inner in enumerate(tool.tools):
                    offered._add(inner, tool.name, f"{path}.tools.{place}")
            else:
                offered._add(tool, None, path)
        return offered

    def _add(self, tool: ResponsesTool, namespace: str | None, path: str) -> None:
        if tool.type not in ("function", "custom"):
            return
        if tool.name is None:
            raise missing(f"{path}.name")
        is_custom = tool.type == "custom"
        name = _function_name(tool.name, namespace)
        values = {
            "name": name,
            "description": _custom_description(tool) if is_custom else tool.description,
            "parameters": _TEXT_PARAMETER if is_custom else tool.parameters,
            "strict": tool.strict,
        }
        function = {key: value for key, value in values.items() if value is not None}
        self.functions.append({"type": "function", "function": function})
        self.origins[name] = _Origin(tool.name, namespace, is_custom)

    def choice(self, choice: str | ResponsesToolChoice | None) -> Any:
        """Return the chat's `tool_choice`. Raise `RequestError` for a tool that is left out."""
        if not isinstance(choice, ResponsesToolChoice):
            return choice
        if choice.type == "allowed_tools":
            allowed = [name for tool in choice.tools or () for name in self._named(tool)]
            selection = {"mode": choice.mode or "auto", "tools": [_named_tool(name) for name in allowed]}
            return {"type": "allowed_tools", "allowed_tools": selection}
        if choice.type not in ("function", "custom"):
            raise unsupported("tool_choice", choice.type, "function, custom and allowed_tools")
        return _named_tool(None if choice.name is None else _function_name(choice.name, choice.namespace))

    def _named(self, tool: Mapping[str, Any]) -> list[Any]:
        """Return the names of the functions that an entry of a selection means."""
        kind, name, namespace = (tool.get(key) for key in ("type", "name", "namespace"))
        if kind == "namespace":
            return [function for function, origin in self.origins.items() if origin.namespace == name]
        if kind not in ("function", "custom"):
            return []
        return [_function_name(name, namespace) if isinstance(name, str) and isinstance(namespace, str) else name]

    def called(self, function: str, arguments: str) -> Called:
        """Return the call of a function as the call of its tool. `arguments` is the JSON text of an object."""
        origin = self.origins[function]
        names = {"name": origin.name} | ({} if origin.namespace is None else {"namespace": origin.namespace})
        if not origin.is_custom:
            return Called("function_call", names, arguments)
        text = json.loads(arguments).get(_INPUT)
        return Called("custom_tool_call", names, text if isinstance(text, str) else arguments)


def chat_call(item: CallItem) -> dict[str, Any]:
    """Return the call of an item for a message of the assistant."""
    arguments = item.arguments
    if item.type == "custom_tool_call":
        arguments = json.dumps({_INPUT: item.input}, ensure_ascii=False)
    function = {"name": _function_name(item.name or "", item.namespace), "arguments": arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def _function_name(name: str, namespace: str | None) -> str:
    """Return the name of the function for a tool of a namespace, which has a digest if it would be too long."""
    if namespace is None:
        return name
    joined = f"{namespace}{'' if namespace.endswith('_') else '__'}{name}"
    if len(joined) <= _MAX_NAME:
        return joined
    digest = hashlib.sha256(joined.encode()).hexdigest()[:8]
    return f"{joined[: _MAX_NAME - 9]}_{digest}"


_TEXT_PARAMETER = {
    "type": "object",
    "properties": {_INPUT: {"type": "string", "description": "The whole text for the tool."}},
    "required": [_INPUT],
    "additionalProperties": False,
}


def _custom_description(tool: ResponsesTool) -> str | None:
    """Return the description of a custom tool, with the grammar of its text."""
    if tool.format is None or not tool.format.definition:
        return tool.description
    grammar = f"The text follows this grammar ({tool.format.syntax or 'grammar'}):\n{tool.format.definition}"
    return "\n\n".join(filter(None, (tool.description, grammar)))


def _named_tool(name: Any) -> dict[str, Any]:
    """Return the chat's choice of one function."""
    return {"type": "function", "function": {"name": name}}
