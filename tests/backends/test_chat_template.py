"""The environment of chat templates in GGUF files is that of transformers."""

from __future__ import annotations

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from markovian_rsa_mlx.backends.chat_template import render

CHAT = [{"role": "user", "content": "1 < 2 & é"}, {"role": "assistant", "content": "yes"}]
TEMPLATES = [
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "{{ messages | tojson(ensure_ascii=True, sort_keys=True) }}",
    "{{ strftime_now('%Y') }}{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}{% if tools %}no{% endif %}",
    "  {% if messages %}\n{{ messages[0].content }}\n  {% endif %}\nend",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_give_what_transformers_gives(template: str) -> None:
    (expected,), _ = render_jinja_template([CHAT], chat_template=template, add_generation_prompt=True)
    assert render(template, messages=CHAT, add_generation_prompt=True) == expected


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ ''.__class__.__mro__ }}", "{% include 'x' %}"])
def test_refusals_and_escapes_raise(template: str) -> None:
    with pytest.raises((jinja2.TemplateError, TypeError)):
        render(template, messages=CHAT)
