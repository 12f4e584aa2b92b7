"""Generate the JSON Schema of an audit trail, and the tables that document it, from the event classes.

`python -m markovian_rsa_mlx.audit.schema DOCUMENT` writes them into the design document, between its marks.
"""

from __future__ import annotations

import inspect
import json
import sys
import types
from collections.abc import Container
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..config import ADDED_SETTINGS, RSAConfig
from .events import EVENT_TYPES, NOT_POSITIVE, Event
from .log_file import OPTIONAL_FIELDS, type_name

BEGIN = "<!-- made by `python -m markovian_rsa_mlx.audit.schema`: begin -->"
END = "<!-- end -->"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": 0},
    float: {"type": "number", "minimum": 0},
    types.NoneType: {"type": "null"},
    Any: {},
    RSAConfig: {"$ref": "#/$defs/RSAConfig"},
}


def schema() -> dict[str, Any]:
    """Return the schema of one line (draft 2020-12): one of the events."""
    definitions: dict[str, Any] = {}
    for name, event_type in EVENT_TYPES.items():
        described = {
            field: {**_type_schema(hint), "description": text} for field, hint, text in _documented(event_type)
        }
        definitions[name] = {
            "description": inspect.getdoc(event_type),
            **_object_schema({"event": {"const": event_type.EVENT_NAME}, **described}, OPTIONAL_FIELDS[name]),
        }
    settings = {name: _type_schema(hint) for name, hint in get_type_hints(RSAConfig).items()}
    definitions["RSAConfig"] = {
        "description": "The settings of a run, by the names of `RSAConfig`'s fields.",
        **_object_schema(settings, ADDED_SETTINGS),
    }
    return {
        "$schema": _DIALECT,
        "title": "One line of a markovian-rsa-mlx audit trail",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in EVENT_TYPES],
        "$defs": definitions,
    }


def document_part() -> str:
    """Return the generated part of the design document: a table per event, then the schema."""
    tables = ""
    for event_type in EVENT_TYPES.values():
        rows = "\n".join(f"| `{name}` | {type_name(hint)} | {text} |" for name, hint, text in _documented(event_type))
        tables += (
            f"#### `{event_type.EVENT_NAME}` (`{event_type.__name__}`)\n\n{inspect.getdoc(event_type)}\n\n"
            f"| field | type | meaning |\n|---|---|---|\n{rows}\n\n"
        )
    return f"{tables}### The schema\n\n```json\n{_render(schema())}\n```\n"


def replace_part(document: str) -> str:
    """Return the document with its part generated again. Raises ValueError without the marks."""
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{document_part()}\n{END}{after}"


def _render(value: Any, depth: int = 0) -> str:
    """Return JSON with one line per property, for people to read."""
    if not isinstance(value, dict) or depth == 4:
        return json.dumps(value)
    inner = ",\n".join(f"{' ' * (depth + 1)}{json.dumps(key)}: {_render(v, depth + 1)}" for key, v in value.items())
    return f"{{\n{inner}\n{' ' * depth}}}"


def _documented(event_type: type[Event]) -> list[tuple[str, Any, str]]:
    """Return (field, type, documentation) in order. A type with a bound of its own keeps it."""
    hints = get_type_hints(event_type, include_extras=True)
    rows = []
    for field in fields(event_type):
        if field.name != "EVENT_NAME":
            hint, text, *bounds = get_args(hints[field.name])
            hint = Annotated[hint, *bounds] if bounds else hint
            rows.append((field.name, hint, str(text)))
    return rows


def _object_schema(properties: dict[str, Any], optional: Container[str]) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _type_schema(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return {"type": "number", "maximum": 0} if NOT_POSITIVE in arguments else _type_schema(arguments[0])
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type_schema(argument) for argument in arguments]}
    if origin is list:
        return {"type": "array", "items": _type_schema(arguments[0])}
    if origin is tuple and arguments[-1] is ...:
        return {"type": "array", "items": _type_schema(arguments[0])}
    if origin is tuple:
        items = [_type_schema(argument) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(arguments[1])}
    return dict(_PLAIN[hint])


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(replace_part(document.read_text(encoding="utf-8")), encoding="utf-8")
