"""Render chat templates of files that no tokenizer library reads, in the environment that transformers gives them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` blocks, which mark the assistant's text for training. They are rendered like other text."""

    tags = {"generation"}  # noqa: RUF012  as the base class has it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
    """Return JSON without the escapes for HTML that Jinja2's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


_environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
)
_environment.filters["tojson"] = _to_json
_environment.globals.update(raise_exception=_refuse, strftime_now=_now)


def render(template: str, **variables: Any) -> str:
    """Return a rendered chat template. Raises whatever the template raises: it is code of the model's maker."""
    return _environment.from_string(template).render(**{"tools": None, "documents": None, **variables})
