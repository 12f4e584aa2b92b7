"""The values that a body's keys may have: types with bounds, and the key's other names.

The JSON Schema of the served document is made of these types, so it cannot say anything else.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

#: Other names of a key, as clients of Zyphra's proxy and of OpenAI write them.
ALIASES: Final = {
    "rsa_short_resp_len": "short_resp_len",
    "rsa_use_tail_window": "rsa_tail_window",
    "rsa_tail_window_len": "tail_window_len",
    "final_aggregation_prompts": "rsa_final_n",
    "rsa_final_temperature": "final_temperature",
    "rsa_final_top_p": "final_top_p",
    "rsa_final_top_k": "final_top_k",
    "summarize": "rsa_summarize",
    "rsa_summary_prompt": "summary_prompt",
    "rsa_use_pacore": "use_pacore",
    "rsa_return_aggregation_prompt": "return_aggregation_prompt",
    "rsa_return_metadata": "return_rsa_metadata",
    "max_completion_tokens": "max_tokens",
    "rsa_seed": "seed",
}
#: Each of these makes a request a run of Markovian RSA.
RSA_KEYS: Final = frozenset(
    {
        "rsa_t",
        "rsa_n",
        "rsa_k",
        "short_resp_len",
        "rsa_tail_window",
        "tail_window_len",
        "rsa_final_n",
        "final_temperature",
        "final_top_p",
        "final_top_k",
        "rsa_summarize",
        "summary_prompt",
        "use_pacore",
        "return_aggregation_prompt",
        "return_rsa_metadata",
        "rsa_max_concurrency",
        "rsa_debug",
        "rsa_profile",
        "rsa_selection",
    }
)
_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 8.0 is whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _switch(value: Any) -> Any:
    word = str(value).strip().lower() if isinstance(value, str | int) else None
    if word in _ON or word in _OFF:
        return word in _ON
    raise ValueError('give true or false (or "1", "yes", "on", "0", "no", "off")')


def _any_case(word: str) -> str:
    return "".join(f"[{letter.upper()}{letter}]" if letter.isalpha() else letter for letter in word)


_SWITCH_SCHEMA = {
    "anyOf": [
        {"type": "boolean"},
        {"type": "integer", "enum": [0, 1]},
        {"type": "string", "pattern": f"^({'|'.join(map(_any_case, (*_ON, *_OFF)))})$"},
    ]
}

Switch = Annotated[bool, BeforeValidator(_switch), WithJsonSchema(_SWITCH_SCHEMA)]
Rounds = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=100)]
Traces = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=1_024)]
Finals = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=1_024)]
Parents = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=1_024)]
Choices = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=128)]
Tokens = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=10_000_000)]
TopK = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=1_000_000)]
Slots = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=10_000)]
Seed = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=2**63 - 1)]
Temperature = Annotated[float, Field(ge=0, le=10)]
TopP = Annotated[float, Field(gt=0, le=1)]
MinP = Annotated[float, Field(ge=0, le=1)]
