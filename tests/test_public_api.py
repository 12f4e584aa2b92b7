"""The public surface: Python names, audit events, commands and flags, exit codes, JSON output, HTTP, metrics.

`data/public_api.json` records it. Everything recorded must stay. Additions are allowed and need no entry. Change an
entry only together with a note for users in CHANGELOG.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel

from markovian_rsa_mlx.audit import AuditWriter, read_events
from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.backends.openai import TimeLimits
from markovian_rsa_mlx.bench import results as bench_results
from markovian_rsa_mlx.config import PROFILES, RSAConfig
from markovian_rsa_mlx.errors import ConfigError, RunStoppedError
from markovian_rsa_mlx.serve.request import RequestModel
from markovian_rsa_mlx.serve.schemas import ResponseModel
from markovian_rsa_mlx.viewer import live_page, runs_page

TESTS = Path(__file__).parent
DESIGN = TESTS.parent / "docs" / "superpowers" / "specs" / "2026-05-10-markovian-rsa-mlx-design.md"
RECORDED: dict[str, Any] = json.loads((TESTS / "data" / "public_api.json").read_text(encoding="utf-8"))
TRAIL = TESTS / "trails" / "finished.jsonl"
PUZZLE = "Calculate 35 using all of these numbers: 3, 17, 12, 9.\nEach number may be used at most once."


# Python


def resolve(name: str) -> Any:
    """Return the object that a "module:Class.attribute" names."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in filter(None, path.split(".")):
        found = getattr(found, part)
    return found


def signature_text(function: Callable[..., Any]) -> str:
    """Return the parameters without annotations. A default that is not a literal becomes `...`."""
    parts, slash, star = [], False, False
    for parameter in inspect.signature(function).parameters.values():
        if slash and parameter.kind is not parameter.POSITIONAL_ONLY:
            parts.append("/")
        slash = parameter.kind is parameter.POSITIONAL_ONLY
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={literal(parameter.default)}"
        parts.append(f"{prefix}{parameter.name}{default}")
    return ", ".join([*parts, "/"] if slash else parts)


def literal(value: object) -> str:
    return repr(value) if value is None or isinstance(value, bool | int | float | str) or value == () else "..."


def parsed_signature(text: str) -> inspect.Signature:
    """Return the signature that a recorded text describes."""
    namespace: dict[str, Any] = {}
    exec(f"def function({text}): ...", namespace)
    return inspect.signature(namespace["function"])


def broken_calls(recorded: inspect.Signature, actual: inspect.Signature) -> list[str]:
    """Return why calls that the recorded signature allows would fail or mean something else."""
    found = []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    order = [parameter.name for parameter in actual.parameters.values() if parameter.kind in positional]
    for index, (name, old) in enumerate(recorded.parameters.items()):
        new = actual.parameters.get(name)
        if new is None:
            found.append(f"{name} is gone")
        elif new.kind is not old.kind and not (old.kind is old.KEYWORD_ONLY and new.kind is new.POSITIONAL_OR_KEYWORD):
            found.append(f"{name} is {new.kind.description}, was {old.kind.description}")
        elif old.kind in positional and order.index(name) != index:
            found.append(f"{name} is at another position")
        elif old.default is not old.empty and new.default is new.empty:
            found.append(f"{name} has lost its default")
        elif old.default not in (old.empty, ...) and literal(old.default) != literal(new.default):
            found.append(f"the default of {name} is {new.default!r}, was {old.default!r}")
    for name, new in actual.parameters.items():
        optional = new.default is not new.empty or new.kind in (new.VAR_POSITIONAL, new.VAR_KEYWORD)
        if name not in recorded.parameters and not optional:
            found.append(f"{name} is new and required")
    return found


@pytest.mark.parametrize("module", RECORDED["exports"])
def test_exported_names_stay(module: str) -> None:
    names = RECORDED["exports"][module]
    assert set(names) <= set(importlib.import_module(module).__all__)
    for name in names:
        exec(f"from {module} import {name}", {})


@pytest.mark.parametrize("module", RECORDED["names"])
def test_documented_names_stay(module: str) -> None:
    for name in RECORDED["names"][module]:
        exec(f"from {module} import {name}", {})


@pytest.mark.parametrize("name", RECORDED["signatures"])
def test_calls_of_documented_functions_stay_valid(name: str) -> None:
    recorded = parsed_signature(RECORDED["signatures"][name])
    assert not broken_calls(recorded, inspect.signature(resolve(name)))


@pytest.mark.parametrize(
    ("actual", "broken"),
    [
        ("a, b=1, *, c=None", False),
        ("a, b=1, c=None", False),
        ("a, b=1, d=0, *, c=None, **e", False),
        ("a, b=2, *, c=None", True),
        ("a, *, b=1, c=None", True),
        ("a, d=0, b=1, *, c=None", True),
        ("a, b, *, c=None", True),
        ("a, b=1, *, c=None, d", True),
        ("a, b=1, **c", True),
    ],
)
def test_signature_that_breaks_calls_is_noticed(actual: str, broken: bool) -> None:
    assert bool(broken_calls(parsed_signature("a, b=1, *, c=None"), parsed_signature(actual))) == broken


@pytest.mark.parametrize("name", RECORDED["attributes"])
def test_documented_attributes_stay(name: str) -> None:
    documented = resolve(name)
    fields = {field.name for field in dataclasses.fields(documented)} if dataclasses.is_dataclass(documented) else set()
    missing = [each for each in RECORDED["attributes"][name] if each not in fields and not hasattr(documented, each)]
    assert not missing


@pytest.mark.parametrize("name", RECORDED["errors"])
def test_error_classes_stay(name: str) -> None:
    recorded = RECORDED["errors"][name]
    error = resolve(f"markovian_rsa_mlx.errors:{name}")
    assert (error.kind, error.exit_code) == (recorded["kind"], recorded["exit_code"])
    assert set(recorded["bases"]) <= {base.__name__ for base in error.__mro__}


def test_stopped_run_error_has_reason_and_partial_result() -> None:
    error = RunStoppedError("message", "token_budget", None)
    assert (str(error), error.reason, error.partial) == ("message", "token_budget", None)


def test_time_limits_accept_documented_names() -> None:
    limits = TimeLimits(connect_s=1.0, first_token_s=2.0, stall_s=3.0, patience_s=4.0)
    assert (limits.connect_s, limits.first_token_s, limits.stall_s, limits.patience_s) == (1.0, 2.0, 3.0, 4.0)
    assert TimeLimits(1.0, 2.0, 3.0, 4.0) == limits
    assert (TimeLimits().connect_s, TimeLimits().patience_s) == (10.0, 60.0)


def test_settings_keep_names_and_defaults() -> None:
    recorded: dict[str, Any] = RECORDED["profiles"]["default-16gb"]
    assert recorded.items() <= RSAConfig().to_dict().items()
    names = [field.name for field in dataclasses.fields(RSAConfig)]
    assert [name for name in names if name in recorded] == list(recorded)


@pytest.mark.parametrize("name", RECORDED["profiles"])
def test_profiles_keep_their_settings(name: str) -> None:
    assert RECORDED["profiles"][name].items() <= PROFILES[name].to_dict().items()
    assert RSAConfig.profile(name) == PROFILES[name] == getattr(RSAConfig, name.replace("-", "_"))()


def test_settings_are_read_from_a_file_and_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('profile = "paper-16k"\nseed = 3\ntail_tokens = "full"\n', encoding="utf-8")
    config = RSAConfig.from_toml(path)
    assert config == RSAConfig.from_mapping({"profile": "paper-16k", "seed": 3, "tail_tokens": "full"})
    assert (config.population, config.seed, config.tail_limit) == (16, 3, 16_000)
    assert [config.budget(round_index) for round_index in range(4)] == [16_000, 16_000, 40_000, 40_000]
    assert config.sampling(False) == config.sampling(True)
    assert isinstance(config.warnings(published_model=False), list)
    with pytest.raises(ConfigError):
        config.replace(round=1)


def test_pages_return_html_and_a_policy() -> None:
    for page, policy in (live_page("0123456789abcdef"), runs_page()):
        assert page.lstrip().lower().startswith("<!doctype html>")
        assert "default-src 'none'" in policy.header


# Audit files


@pytest.mark.parametrize("name", RECORDED["events"])
def test_event_keeps_its_fields_in_order(name: str) -> None:
    recorded = RECORDED["events"][name]
    event_type = resolve(f"markovian_rsa_mlx.audit.events:{recorded['class']}")
    assert issubclass(event_type, resolve("markovian_rsa_mlx.audit.events:_BaseEvent"))
    assert not event_type.__dataclass_params__.frozen
    first, *fields = dataclasses.fields(event_type)
    assert (first.name, first.init, event_type.EVENT_NAME) == ("EVENT_NAME", False, name)
    names = [field.name for field in fields]
    assert [each for each in names if each in recorded["fields"]] == recorded["fields"]
    new = [field for field in fields if field.name not in recorded["fields"]]
    if recorded["fixed"]:
        assert not new
    for field in new:  # Files that were written earlier do not have it.
        assert field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    event = event_type(*range(len(names)))
    event.run_id = "changed"
    assert list(event.to_dict()) == ["event", *names]
    assert (event.to_dict()["event"], event.to_dict()["run_id"]) == (name, "changed")


def test_writer_writes_one_object_per_line(tmp_path: Path) -> None:
    from markovian_rsa_mlx.audit.events import ErrorEvent

    path = tmp_path / "new" / "run.jsonl"
    for mode in ("a", "a", "w"):
        with AuditWriter(path, mode) as writer:
            writer.write(ErrorEvent("run", "stage", "größer", recoverable=True))
            assert path.read_text(encoding="utf-8").splitlines()[-1] == (
                '{"event": "error", "run_id": "run", "stage": "stage", "message": "größer", "recoverable": true}'
            )
    assert len(read_events(path)) == 1
    with pytest.raises(ValueError, match="AuditWriter is closed"):
        writer.write(ErrorEvent("run", "stage", "message", recoverable=True))
    with AuditWriter(None) as nothing:
        nothing.write(ErrorEvent("run", "stage", "message", recoverable=True))


def test_schema_command_writes_every_event_into_the_design_document(tmp_path: Path) -> None:
    document = tmp_path / "design.md"
    made = re.compile(r"(?<=begin -->\n).*(?=<!-- end -->)", re.DOTALL)
    document.write_text(made.sub("", DESIGN.read_text(encoding="utf-8")), encoding="utf-8")
    command = [sys.executable, "-m", "markovian_rsa_mlx.audit.schema", str(document)]
    subprocess.run(command, check=True, capture_output=True)
    (written,) = made.findall(document.read_text(encoding="utf-8"))
    for name, recorded in RECORDED["events"].items():
        assert f"`{name}` (`{recorded['class']}`)" in written
        assert all(f"| `{field}` |" in written for field in recorded["fields"])
    (schema,) = re.findall(r"```json\n(.*?)```", written, re.DOTALL)
    assert json.loads(schema)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


# Benchmarks


@pytest.mark.parametrize("name", RECORDED["results"])
def test_results_keep_their_keys(name: str) -> None:
    fields = [field.name for field in dataclasses.fields(resolve(f"markovian_rsa_mlx.bench.results:{name}"))]
    assert [field for field in fields if field in RECORDED["results"][name]] == RECORDED["results"][name]


def test_results_are_read_and_written_alike() -> None:
    assert bench_results.SCHEMA_VERSION == 1
    values = RECORDED["results.json"]
    read = bench_results.results_from_dict(values)
    written = json.loads(json.dumps(read.to_dict()))
    assert next(iter(written)) == "schema_version"
    assert not lost(values, written)
    assert bench_results.results_from_dict(written) == read


# The command line


@dataclass(frozen=True)
class Completed:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


def mrsa(*arguments: object) -> Completed:
    """Run a command in this process, without a terminal."""
    from markovian_rsa_mlx.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO())
        code = main([str(argument) for argument in arguments])
    return Completed(code, out.getvalue(), err.getvalue())


def flags_of(help_text: str) -> set[str]:
    """Return the flags that a help text defines: the beginnings of lines, up to the column of descriptions."""
    found: set[str] = set()
    for line in help_text.splitlines():
        definition = re.match(r"[\s│|*]*(-.*?)(?:\s{2,}|$)", line)
        if definition:
            found |= set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*|-[a-zA-Z])(?![\w-])", definition[1]))
    return found


def shape(value: Any) -> Any:
    """Return the keys and types of a JSON value. Of a list, the shape of its first item."""
    match value:
        case dict():
            return {key: shape(item) for key, item in value.items()}
        case list():
            return [shape(value[0])] if value else []
        case bool() | str() | None:
            return type(value).__name__
        case _:
            return "number"


def lost(recorded: Any, actual: Any, path: str = "") -> list[str]:
    """Return the keys of a JSON value that are gone, and those that have a value of another type."""
    if recorded is None or actual is None:
        return []
    if isinstance(recorded, dict) and isinstance(actual, dict):
        gone = [f"{path}.{key}" for key in recorded if key not in actual]
        return gone + [
            each
            for key in recorded.keys() & actual.keys()
            for each in lost(recorded[key], actual[key], f"{path}.{key}")
        ]
    if isinstance(recorded, list) and isinstance(actual, list):
        return lost(recorded[0], actual[0], f"{path}[0]") if recorded and actual else []
    return [] if shape(recorded) == shape(actual) else [f"{path}: {shape(actual)}, was {shape(recorded)}"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep runs in a folder of the test."""
    monkeypatch.setenv("MRSA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("MRSA_DEBUG", raising=False)
    return tmp_path / "home"


@pytest.mark.parametrize("command", RECORDED["flags"])
def test_commands_keep_their_flags(command: str, home: Path) -> None:
    shown = mrsa(*command.split(), "--help")
    assert shown.code == 0
    assert not set(RECORDED["flags"][command]) - flags_of(shown.out)


@pytest.mark.parametrize("case", RECORDED["exit_codes"], ids=lambda case: " ".join(case["arguments"]) or "nothing")
def test_commands_keep_their_exit_codes(case: dict[str, Any], home: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("not a run\n", encoding="utf-8")
    places = {"TMP": str(tmp_path), "NOTES": str(notes), "TRAIL": shutil.copy(TRAIL, tmp_path), "PUZZLE": PUZZLE}
    ran = mrsa(*(re.sub(r"\{(\w+)\}", lambda match: places[match[1]], each) for each in case["arguments"]))
    assert ran.code == case["code"], ran.err
    assert ran.out or ran.err
    assert "This is a bug" not in ran.err


def test_error_of_a_command_is_one_line_and_mrsa_debug_raises_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = mrsa("runs", "show", "nothing")
    assert (ran.code, ran.out) == (1, "")
    assert re.fullmatch(r"error: .+\n", ran.err)
    monkeypatch.setenv("MRSA_DEBUG", "1")
    from markovian_rsa_mlx.errors import AuditError

    with pytest.raises(AuditError):
        mrsa("runs", "show", "nothing")


def test_runs_are_kept_in_the_folder_that_mrsa_home_names(home: Path) -> None:
    result = mrsa(
        "solve", PUZZLE, "--seed", 3, "--rounds", 1, "--population", 2, "--aggregation-size", 2, "--json", "-q"
    )
    assert result.code == 0
    solved = json.loads(result.out)
    assert not lost(RECORDED["json"]["solve"], solved)
    (trail,) = (home / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{12}\.jsonl", trail.name)
    assert solved["audit_path"] == str(trail)
    assert mrsa("runs", "path").out == f"{home / 'runs'}\n"
    assert not lost(RECORDED["json"]["runs list"], json.loads(mrsa("runs", "list", "--json").out))
    assert mrsa("view").out == f"{trail.with_suffix('.html')}\n"


def test_solve_stopped_by_its_token_budget_exits_with_1_and_can_be_resumed(home: Path, tmp_path: Path) -> None:
    command = ["solve", PUZZLE, "--seed", 1, "--rounds", 1, "--population", 2, "--aggregation-size", 2, "--json", "-q"]
    path = tmp_path / "run.jsonl"
    stopped = mrsa(*command, "--audit", path, "--token-budget", 60)
    assert (stopped.code, json.loads(stopped.out)["stopped"]) == (1, "token_budget")
    resumed = mrsa(*command, "--audit", path)
    assert (resumed.code, json.loads(resumed.out)["resumed"]) == (0, True)
    assert verify_file(path).finished


@pytest.mark.slow
def test_solve_interrupted_exits_with_130_and_can_be_resumed(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    arguments = ["solve", PUZZLE, "--seed", "1", "--rounds", "2", "--json", "--audit", str(path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "markovian_rsa_mlx", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (path.is_file() and '"trace_complete"' in path.read_text(encoding="utf-8")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["stopped"]) == (130, "interrupted")
    assert mrsa(*arguments).code == 0


@pytest.mark.parametrize("command", ["plan", "profiles"])
def test_json_of_a_command_keeps_its_keys(command: str, home: Path) -> None:
    ran = mrsa(command, "--json")
    assert ran.code == 0
    assert not lost(RECORDED["json"][command], json.loads(ran.out))


def test_profile_is_printed_as_settings_that_solve_reads(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(mrsa("profiles", "paper-16k").out, encoding="utf-8")
    assert RSAConfig.from_toml(path) == RSAConfig.profile("paper-16k")


@pytest.mark.slow
def test_json_of_tune_keeps_its_keys_and_is_read_again(home: Path, tmp_path: Path) -> None:
    measured = mrsa("tune", "--json", "--seconds", 1)
    assert measured.code == 0
    assert not lost(RECORDED["json"]["tune"], json.loads(measured.out))
    path = tmp_path / "speeds.json"
    for speeds in (json.loads(measured.out), RECORDED["json"]["tune"]):
        path.write_text(json.dumps(speeds), encoding="utf-8")
        again = mrsa("tune", "--json", "--speeds", path, "--profile", "embedded")
        assert again.code == 0
        assert json.loads(again.out)["speeds"]["decodes"] == speeds["speeds"]["decodes"]


@pytest.mark.slow
def test_benchmark_keeps_its_files_and_keys(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    folder = tmp_path / "bench"
    command = ["bench", "countdown", "--limit", 1, "--methods", "single,markovian", "--population", 2]
    command.append("--trace-confidence")
    ran = mrsa(*command, "--aggregation-size", 2, "--rounds", 1, "--json", "-q", "--out", folder)
    assert ran.code == 0
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(RECORDED["bench_files"]) <= files
    for name, text in (
        ("bench", ran.out),
        ("bench.json", (folder / "bench.json").read_text(encoding="utf-8")),
        ("bench compare", mrsa("bench", "compare", folder, folder, "--json").out),
        ("bench votes", mrsa("bench", "votes", folder, "--json").out),
    ):
        assert not lost(RECORDED["json"][name], json.loads(text)), name
    assert not lost(RECORDED["results.json"], json.loads((folder / "results.json").read_text(encoding="utf-8")))
    verify_file(folder / "trails" / "markovian" / "00001-1.jsonl")


# HTTP


class Server:
    """A real `mrsa serve` on the embedded model."""

    def __init__(self, home: Path, *options: str, **variables: str) -> None:
        command = [sys.executable, "-m", "markovian_rsa_mlx", "serve", "--port", "0", "--grace", "0", *options]
        environment = {**os.environ, "MRSA_HOME": str(home), **variables}
        self.runs = home / "runs"
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stderr is not None
        self.log: list[str] = []
        address = None
        while address is None:
            line = self.process.stderr.readline()
            assert line, self.log
            self.log.append(line)
            address = re.search(r"http://127\.0\.0\.1:\d+", line)
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.client = httpx2.Client(base_url=address[0], timeout=60)

    def ask(self, **keys: Any) -> httpx2.Response:
        body = {"messages": [{"role": "user", "content": PUZZLE}], **keys}
        return self.client.post("/v1/chat/completions", json=body)

    def close(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0


#: A run of Markovian RSA that takes a moment, asked for with the canonical keys.
RSA = {
    "rsa_t": 1, "rsa_n": 2, "rsa_k": 2, "short_resp_len": 20, "rsa_tail_window": True, "tail_window_len": 8,
    "rsa_final_n": 2, "final_temperature": 0.6, "final_top_p": 0.95, "final_top_k": 40, "rsa_summarize": False,
    "use_pacore": False, "return_aggregation_prompt": True,
    "return_rsa_metadata": True, "rsa_max_concurrency": 0, "rsa_debug": True, "rsa_selection": "single",
    "max_tokens": 20, "seed": 5,
}  # fmt: skip
#: The same with summaries, which exclude a window of the tail.
SUMMARIES = {**RSA, "rsa_summarize": True, "summary_prompt": "Summarise."}
del SUMMARIES["rsa_tail_window"], SUMMARIES["tail_window_len"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("starlette")
    started = Server(tmp_path_factory.mktemp("home"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def completion(server: Server) -> httpx2.Response:
    """The reply to a run of Markovian RSA."""
    return server.ask(**RSA)


def type_of(schema: Mapping[str, Any]) -> str:
    """Return the type of a property in an OpenAPI document, as `integer | null` or the name of a component."""
    if "anyOf" in schema:
        return " | ".join(sorted({type_of(option) for option in schema["anyOf"]}))
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[1]
    if schema.get("type") == "array":
        return f"[{type_of(schema.get('items', {}))}]"
    return str(schema.get("type", "any"))


def described(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the operations and components of an OpenAPI document, as recorded."""
    operations = {
        f"{method.upper()} {path}": {
            "parameters": sorted(each["name"] for each in operation.get("parameters", ())),
            "body": [
                type_of(content["schema"]) for content in operation.get("requestBody", {}).get("content", {}).values()
            ],
            "replies": {
                status: {kind: type_of(content["schema"]) for kind, content in reply.get("content", {}).items()}
                for status, reply in operation["responses"].items()
            },
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    components = {
        name: {
            "required": sorted(schema.get("required", ())),
            "properties": {key: type_of(value) for key, value in schema.get("properties", {}).items()},
        }
        for name, schema in document["components"]["schemas"].items()
    }
    return {"operations": operations, "components": components}


def missing(recorded: Any, actual: Any, path: str = "") -> list[str]:
    """Return the recorded entries that are gone or have another value."""
    if isinstance(recorded, dict) and isinstance(actual, dict):
        return [
            each
            for key, value in recorded.items()
            for each in (missing(value, actual[key], f"{path}/{key}") if key in actual else [f"{path}/{key}"])
        ]
    if isinstance(recorded, list) and isinstance(actual, list):
        return [f"{path}: {item}" for item in recorded if item not in actual]
    return [] if recorded == actual else [f"{path}: {actual}, was {recorded}"]


def test_openapi_document_keeps_operations_and_components(server: Server) -> None:
    document = server.client.get("/openapi.json").json()
    assert not missing(RECORDED["http"]["openapi"], described(document))
    # A body that was accepted stays accepted.
    assert document["components"]["schemas"]["ChatRequest"]["required"] == ["messages"]


def test_requests_and_responses_share_no_name_of_a_type() -> None:
    """Their types are merged by name in the OpenAPI document."""
    importlib.import_module("markovian_rsa_mlx.serve.app")

    def types(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
        yield model
        for part in model.__subclasses__():
            yield from types(part)

    names = {model.__name__ for model in types(RequestModel)} & {model.__name__ for model in types(ResponseModel)}
    assert not names


@pytest.mark.parametrize("key", RECORDED["http"]["openapi"]["components"]["ChatRequest"]["properties"])
def test_bad_value_of_a_body_key_is_400_and_the_key_is_known(key: str, server: Server) -> None:
    reply = server.ask(**{key: [[]]})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] != "unknown_key"
    assert error["param"].split(".")[0] in {key, RECORDED["http"]["aliases"].get(key, key)}


@pytest.mark.parametrize("alias", RECORDED["http"]["aliases"])
def test_alias_of_a_body_key_that_contradicts_it_is_400(alias: str, server: Server) -> None:
    value = {**SUMMARIES, **RSA}[RECORDED["http"]["aliases"][alias]]
    other = not value if isinstance(value, bool) else f"{value}!" if isinstance(value, str) else value / 2
    reply = server.ask(**{RECORDED["http"]["aliases"][alias]: value, alias: other})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, alias)


def test_unknown_body_key_is_ignored(server: Server) -> None:
    assert server.ask(no_such_key=1, seed=1).json()["choices"] == server.ask(seed=1).json()["choices"]


@pytest.mark.parametrize("keys", [RSA, SUMMARIES], ids=["tails", "summaries"])
def test_aliases_of_body_keys_mean_the_same(keys: dict[str, Any], server: Server) -> None:
    names = {name: alias for alias, name in RECORDED["http"]["aliases"].items()}
    words = {True: "yes", False: "0"}
    renamed = {names.get(key, key): words[value] if isinstance(value, bool) else value for key, value in keys.items()}
    first, second = server.ask(**keys), server.ask(**renamed)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json()["choices"] == second.json()["choices"]
    assert first.json()["aggregation_prompt"] == second.json()["aggregation_prompt"]
    variable = {"elapsed_s", "run_id", "trail", "rsa_stages"}
    metadata = [reply.json()["rsa_metadata"] for reply in (first, second)]
    for key in metadata[0].keys() - variable:
        assert metadata[0][key] == metadata[1][key], key
    assert metadata[0]["rsa_summarize"] == keys["rsa_summarize"]


def test_completion_keeps_its_keys(server: Server, completion: httpx2.Response) -> None:
    assert completion.status_code == 200
    body = completion.json()
    assert not lost(RECORDED["http"]["completion"], body)
    assert completion.headers["X-MRSA-Run-Id"] == body["rsa_metadata"]["run_id"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert (body["rsa_metadata"]["short_resp_len"], body["rsa_metadata"]["seed"]) == (20, 5)
    verify_file(server.runs / body["rsa_metadata"]["trail"])


def test_ordinary_completion_has_no_metadata(server: Server) -> None:
    reply = server.ask(max_tokens=8, n=2, temperature=0.5, top_p=0.9, top_k=5, min_p=0.0, stop=[], user="x")
    assert reply.status_code == 200
    assert set(reply.json()) == {"id", "object", "created", "model", "choices", "usage"}
    assert len(reply.json()["choices"]) == 2


def test_streamed_completion_keeps_its_keys(server: Server) -> None:
    keys = {**RSA, "stream": True, "stream_options": {"include_usage": True}, "rsa_progress": "reasoning"}
    reply = server.ask(**keys)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["X-MRSA-Run-Id"]
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    (last,) = [chunk for chunk in chunks if "rsa_metadata" in chunk]
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert not lost(RECORDED["http"]["completion"]["rsa_metadata"], last["rsa_metadata"])
    assert chunks[-1]["usage"]["total_tokens"] > 0
    deltas = {key for chunk in chunks for choice in chunk["choices"] for key in choice["delta"]}
    assert {"role", "reasoning", "reasoning_content"} <= deltas


def test_stored_run_is_served(server: Server, completion: httpx2.Response) -> None:
    metadata = completion.json()["rsa_metadata"]
    runs = server.client.get("/v1/runs", params={"limit": 1}).json()
    assert not lost(RECORDED["http"]["runs"], runs)
    run = server.client.get(f"/v1/runs/{metadata['run_id']}").json()
    assert (run["id"], run["state"], run["trail"]) == (metadata["run_id"], "finished", metadata["trail"])
    trail = server.client.get(f"/v1/runs/{run['id']}/trail")
    assert trail.headers["content-type"].split(";")[0] == "application/jsonl"
    assert trail.content == (server.runs / run["trail"]).read_bytes()
    events = server.client.get(f"/v1/runs/{run['id']}/events", headers={"Last-Event-ID": "1"})
    assert events.headers["content-type"].startswith("text/event-stream")
    ids = re.findall(r"^id: (\d+)\r?$", events.text, re.MULTILINE)
    assert ids == [str(number) for number in range(2, len(trail.text.splitlines()) + 1)]
    names = re.findall(r"^event: (\w+)\r?$", events.text, re.MULTILINE)
    assert names == [json.loads(line)["event"] for line in trail.text.splitlines()[1:]]
    page = server.client.get(f"/runs/{run['id']}")
    assert (page.status_code, page.headers["content-type"].split(";")[0]) == (200, "text/html")


@pytest.mark.parametrize("case", RECORDED["http"]["replies"], ids=lambda case: f"{case['method']} {case['path']}")
def test_routes_keep_status_type_and_error_code(
    case: dict[str, Any], server: Server, completion: httpx2.Response
) -> None:
    path = case["path"].replace("{finished}", completion.json()["rsa_metadata"]["run_id"])
    reply = server.client.request(
        case["method"], path, content=case.get("content"), json=case.get("json"), headers=case.get("headers")
    )
    assert (reply.status_code, reply.headers.get("content-type", "").split(";")[0]) == (case["status"], case["type"])
    if "code" in case:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert reply.json()["error"]["code"] == case["code"]
    if "body" in case:
        assert not lost(case["body"], reply.json())


def test_body_that_is_too_large_is_413(server: Server) -> None:
    reply = server.ask(user="x" * 4_100_000)
    assert reply.status_code == 413
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.slow
def test_server_with_a_key_asks_for_it(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    keyed = Server(tmp_path, "--api-key-env", "MRSA_TEST_KEY", MRSA_TEST_KEY="secret")
    try:
        for path in ("/v1/models", "/v1/runs", "/metrics", "/openapi.json"):
            refused = keyed.client.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            assert keyed.client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200
        assert keyed.client.get("/health").json() == {"status": "ok"}
        assert keyed.client.get("/login").status_code == 200
        entered = keyed.client.post("/login", data={"key": "secret"})
        assert (entered.status_code, "set-cookie" in entered.headers) == (303, True)
        assert keyed.client.get("/").status_code == 200
    finally:
        keyed.close()


def samples(text: str) -> dict[str, list[str]]:
    """Return the sample names of a metrics page with their label names."""
    found = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? [0-9.e+-]+$", text, re.MULTILINE):
        found[name] = sorted(re.findall(r'(\w+)="', labels))
    return found


def test_metrics_keep_names_types_and_labels(server: Server, completion: httpx2.Response) -> None:
    reply = server.client.get("/metrics")
    assert reply.headers["content-type"].split(";")[0] == "text/plain"
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", reply.text, re.MULTILINE))
    assert not missing(RECORDED["metrics"]["types"], types)
    found = samples(reply.text)
    assert {name: found.get(name) for name in RECORDED["metrics"]["samples"]} == RECORDED["metrics"]["samples"]
