"""Mutate the bytes, lines and values of an audit file at random, and find the mutations that only touch free facts."""

from __future__ import annotations

import copy
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from markovian_rsa_mlx.audit.verify import FREE_FIELDS

Line = dict[str, Any]
_NONSENSE = [
    None, "", "r9-99", "x", [], {}, -1, 0, 1, 2, 2**31, 2**32, 2**70, -0.5, 1e300, True, False, [[]], [""],
    {"role": "user"}, ["r0-00", "r0-00"], float("nan"), float("inf"), "\ud800", "eos", "error", "upstream/x", "full",
]  # fmt: skip


def parse(content: bytes) -> list[Line]:
    """Return the objects of the lines."""
    return [json.loads(line) for line in content.split(b"\n") if line]


def render(lines: list[Line]) -> bytes:
    """Return lines as a file. NaN and lone surrogates are written as they are."""
    return b"".join(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n" for line in lines)


def mutate(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return the file with one to three random changes. `others` are files to take lines from."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        content = rng.choice([_change_value, _change_value, _change_value, _change_lines, _change_bytes])(
            content, others, rng
        )
    return content


def _change_value(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    try:
        lines = parse(content)
    except ValueError:
        return content
    if not lines:
        return content
    index = rng.randrange(len(lines))
    lines[index] = copy.deepcopy(lines[index])
    places = list(_places(lines[index], rng))
    holder, key = rng.choice(places)
    holder[key] = _other(holder[key], rng)
    return render(lines)


def _places(value: Any, rng: random.Random) -> Iterator[tuple[Any, Any]]:
    """Yield each place in an object where a value can be changed. Of a long list only a few."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    else:
        keys = sorted({0, len(value) - 1, rng.randrange(len(value))}) if value else []
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key], rng)


def _other(value: Any, rng: random.Random) -> Any:
    match value:
        case bool():
            return not value
        case int() if rng.random() < 0.7:
            return value + rng.choice([-1, 1, 7, -value, 1000])
        case float() if rng.random() < 0.7:
            return value * rng.choice([0.0, 0.5, 0.99, 1.01, 2.0, -1.0]) + rng.choice([0, 0, 1, -1])
        case str() if value and rng.random() < 0.7:
            at = rng.randrange(len(value))
            return value[:at] + rng.choice(["", "7", "x", " ", "\n", "\x00", "é"]) + value[at + rng.choice([0, 1]) :]
        case list() if value and rng.random() < 0.7:
            at = rng.randrange(len(value))
            return rng.choice(
                [value[:at], value[at:], [*value[:at], *value[at + 1 :]], value[::-1], [*value, value[at]]]
            )
    return rng.choice(_NONSENSE)


def _change_lines(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    lines = content.split(b"\n")[:-1]
    if len(lines) < 2:
        return content
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.choice(["drop", "double", "swap", "move", "insert", "replace", "cut", "glue"]):
        case "drop":
            del lines[first]
        case "double":
            lines.insert(second, lines[first])
        case "swap":
            lines[first], lines[second] = lines[second], lines[first]
        case "move":
            lines.insert(second, lines.pop(first))
        case "insert" | "replace" as how:
            foreign = rng.choice(rng.choice(others).split(b"\n")[:-1])
            found = re.search(rb'"run_id": "(\w*)"', lines[0])  # the line may be torn or not be UTF-8
            run_id = found[1].decode() if found else ""
            if rng.random() < 0.7:
                foreign = json.dumps({**json.loads(foreign), "run_id": run_id}, ensure_ascii=False).encode()
            lines[first : first + (how == "replace")] = [foreign]
        case "cut":
            lines = lines[:first]
        case "glue":
            lines = [*lines[:first], *rng.choice(others).split(b"\n")[:-1]]
    return b"".join(line + b"\n" for line in lines)


def _change_bytes(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    at = rng.randrange(len(content)) if content else 0
    piece = bytes(rng.randrange(256) for _ in range(rng.choice([0, 1, 1, 4])))
    return content[:at] + piece + content[at + rng.choice([0, 1, 1, 5, 200]) :]


def changes_free_facts_only(before: list[Line], after: list[Line]) -> bool:
    """Return True if `after` differs from `before` only in fields that nothing determines, or in an order that is free.

    Lines of different traces have no order, and the check has found that each line follows those that it needs.
    """
    counts = Counter(map(_essence, before))
    counts.subtract(map(_essence, after))
    return not any(counts.values())


def _essence(line: Line) -> str:
    """Return a line without its free fields."""
    free = FREE_FIELDS.get(line["event"], frozenset())
    kept = {key: value for key, value in line.items() if key not in free and key != "run_id"}
    for name in ("config", "stats"):
        if isinstance(kept.get(name), dict):
            kept[name] = {key: value for key, value in kept[name].items() if f"{name}.{key}" not in free}
    return json.dumps(kept, sort_keys=True)
