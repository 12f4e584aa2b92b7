"""Tests of `mrsa doctor`: every kind of line on working engines, and FAIL at the right line on broken ones."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import pytest

from benchmarks import doctor_tables
from markovian_rsa_mlx import reasoner
from markovian_rsa_mlx.backends.mlx import device, engine, memory, sampling
from markovian_rsa_mlx.backends.mlx.loading import load_model
from markovian_rsa_mlx.backends.policy import ModelFootprint
from markovian_rsa_mlx.backends.upstream import probe
from markovian_rsa_mlx.cli import doctor, doctor_report, tune
from markovian_rsa_mlx.cli.doctor_checks import Line, Subject, check_template
from markovian_rsa_mlx.cli.engine_options import ModelChoice
from markovian_rsa_mlx.method import prompts
from markovian_rsa_mlx.orchestrator import MarkovianRSAOrchestrator
from markovian_rsa_mlx.predict.expected import Prospect
from markovian_rsa_mlx.tokenizer import TextPart, Tokenizer

from ..backends import tiny_models
from ..backends.fake_upstream import FakeUpstream, Running, free_port, letters
from ..models import folders
from ..support.fakes import CharacterTokenizer, FakeBackend, boxed
from ..support.smollm2 import smollm2_folder
from ..support.strict_templates import Strict
from .conftest import Run

Change = Callable[[Path, pytest.MonkeyPatch], None]


def kinds(found: dict[str, Any], state: str) -> set[int]:
    return {line["kind"] for line in found["lines"] if line["state"] == state}


def examined(mrsa: Run, *arguments: str) -> dict[str, Any]:
    ran = mrsa("doctor", "--quick", "--json", *arguments)
    found: dict[str, Any] = json.loads(ran.out)
    assert ran.code == (0 if found["ok"] else 1)
    assert found["ok"] == (not kinds(found, "FAIL"))
    return found


def test_the_embedded_model_passes_every_check(mrsa: Run) -> None:
    ran = mrsa("doctor", "--quick")
    assert ran.code == 0, ran.out
    states = [line.split()[:2] for line in ran.out.splitlines() if line[0] != " "]
    assert {int(kind) for _, kind in states} == {1, 2, 3, 4, 5, 6, 7, 8, 10}
    assert {state for state, _ in states} <= {"ok", "warn"}
    assert all("tolerance" in line for line in ran.out.splitlines() if "planned" in line)
    assert "--final-tokens" not in ran.out


@pytest.fixture
def revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub without a network, with two revisions of me/tiny. Return the folder of v2."""
    repository = tmp_path / "hub" / "models--me--tiny"
    (repository / "refs").mkdir(parents=True)
    for name, layers in (("main", 3), ("v2", 2)):
        commit = name[-1] * 40
        folder = tiny_models.write(repository / "snapshots" / commit, num_hidden_layers=layers)
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def test_the_named_revision_is_examined(revision: Path, mrsa: Run) -> None:
    choice = ModelChoice("me/tiny", revision="v2")
    assert Subject(MarkovianRSAOrchestrator(FakeBackend(lambda *_: boxed(1))), choice, quick=True).folder == revision
    (revision.parents[1] / "refs" / "main").unlink()
    found = examined(mrsa, "--model", "me/tiny", "--revision", "v2")
    assert not kinds(found, "FAIL")
    assert "config.json" in str(found)
    (revision / "tokenizer.json").write_text("{}")
    assert kinds(examined(mrsa, "--model", "me/tiny", "--revision", "v2"), "FAIL") == {4}


def test_tune_predicts_the_speed_of_the_named_revision(revision: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Path] = []
    monkeypatch.setattr(device, "chip_name", lambda: "Apple M4 Pro")
    monkeypatch.setattr(memory, "model_of_checkpoint", lambda folder, _: planned.append(folder))
    monkeypatch.setattr(Prospect, "of_model", lambda *_: None)
    tune._prospect(ModelChoice("me/tiny", revision="v2"))
    assert planned == [revision]


def test_a_context_too_small_for_a_profile_is_a_warning() -> None:
    def found(context: int) -> Line:
        engine = FakeBackend(context_length=context)
        subject = SimpleNamespace(engine=engine, tokenizer=engine.tokenizer, choice=ModelChoice("x"))
        (line,) = doctor._profiles(cast(Any, subject))
        return line

    short = found(8_192)
    assert (short.kind, short.state) == (2, "warn")
    assert "8,192" in short.seen
    assert "--thinking-tokens " in short.advice
    roomy = found(40_000)
    assert (roomy.kind, roomy.state) == (2, "ok")
    assert "default-16gb" in roomy.seen
    assert "paper-headline-40k" not in roomy.seen


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(("name", "states"), [("system", ["warn"]), ("late system", []), ("repeated role", [])])
def test_refused_system_message_is_reported_with_what_happens_to_it(name: str, states: list[str]) -> None:
    engine = FakeBackend(tokenizer=Strict(name))
    subject = Subject(MarkovianRSAOrchestrator(engine), ModelChoice("fake"), quick=True)
    lines = [line for line in check_template(subject) if "a system message" in line.seen]
    assert [line.state for line in lines] == states
    assert all("before the first message" in line.advice for line in lines)


def template(change: Callable[[str], str]) -> Change:
    def apply(folder: Path, _: pytest.MonkeyPatch) -> None:
        jinja = folder / "chat_template.jinja"
        if jinja.is_file():
            jinja.write_text(change(jinja.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            edit(folder / "tokenizer_config.json", lambda v: v.update(chat_template=change(v["chat_template"])))

    return apply


def shuffle_vocabulary(folder: Path, _: pytest.MonkeyPatch) -> None:
    def change(values: dict[str, Any]) -> None:
        vocabulary = values["model"]["vocab"]
        ids = list(vocabulary.values())
        random.Random(1).shuffle(ids)
        values["model"]["vocab"] = dict(zip(vocabulary, ids, strict=True))

    edit(folder / "tokenizer.json", change)


def truncate_tokenizer(folder: Path, _: pytest.MonkeyPatch) -> None:
    (folder / "tokenizer.json").write_text("{")


def parse_questions(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(tokenizer: Tokenizer, parts: Sequence[TextPart]) -> list[int]:
        return tokenizer.encode("".join(part.text for part in parts))

    monkeypatch.setattr(prompts, "encode_parts", encode)


def clone_streams(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = sampling.gumbel
    monkeypatch.setattr(sampling, "gumbel", lambda keys, size: draw(mx.zeros_like(keys) + keys[:, 1:], size))


def ignore_seeds(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entropy = random.Random(3)
    draw = sampling.gumbel

    def drawn(keys: mx.array, size: int) -> mx.array:
        return draw(mx.array([[entropy.randrange(2**31)] * 2 for _ in range(keys.shape[0])], dtype=mx.uint32), size)

    monkeypatch.setattr(sampling, "gumbel", drawn)


def plan_twice(**sizes: int) -> Change:
    def apply(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        of_model = memory.footprint_of

        def wrong(model: Any) -> ModelFootprint:
            right = of_model(model)
            return replace(right, **{name: times * getattr(right, name) for name, times in sizes.items()})

        monkeypatch.setattr(memory, "footprint_of", wrong)

    return apply


def mix_rows(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = load_model

    def leaky(*arguments: Any, **named: Any) -> Any:
        loaded = read(*arguments, **named)
        kind = type(loaded.model)
        forward = kind.__call__

        def leaking(self: Any, inputs: mx.array, *arguments: Any, **named: Any) -> mx.array:
            logits = forward(self, inputs, *arguments, **named)
            return logits if inputs.shape[0] == 1 else 0.9 * logits + 0.1 * logits[::-1]

        monkeypatch.setattr(kind, "__call__", leaking)
        return loaded

    monkeypatch.setattr(engine, "load_model", leaky)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (template(lambda source: source + "{% if %}"), 3),
        (template(lambda source: source.replace("message", "messages[-1]")), 3),
        (template(lambda source: "{% for m in messages[-1:] %}<|user|>{{ m.content }}{% endfor %}<|assistant|>\n"), 3),
        (template(lambda source: source.replace("add_generation_prompt", "false")), 3),
        (template(lambda source: source.replace("<|end|>", "<|im_end|>")), 3),
        (shuffle_vocabulary, 4),
        (truncate_tokenizer, 4),
        (parse_questions, 4),
        (clone_streams, 6),
        (ignore_seeds, 6),
        (plan_twice(kv_bytes_per_token=2), 7),
        (plan_twice(weight_bytes=2), 7),
    ],
)
def test_a_broken_part_fails_at_its_line(
    change: Change, kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mrsa: Run
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(reasoner.model_path(), folder)
    change(folder, monkeypatch)
    found = examined(mrsa, "--model", str(folder))
    assert kinds(found, "FAIL") == {kind}, found["lines"]
    assert all(line["advice"] for line in found["lines"] if line["state"] == "FAIL")


@pytest.mark.slow
def test_rows_that_mix_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mrsa: Run) -> None:
    """A seed may then not repeat either, since its trace depends on those in the same batch."""
    shutil.copytree(reasoner.model_path(), tmp_path / "model")
    mix_rows(tmp_path, monkeypatch)
    assert {5} <= kinds(examined(mrsa, "--model", str(tmp_path / "model")), "FAIL") <= {5, 6}


@pytest.mark.slow
def test_smollm2_passes_and_another_models_tokenizer_does_not(tmp_path: Path, mrsa: Run) -> None:
    folder = smollm2_folder()
    assert examined(mrsa, "--model", str(folder))["ok"]
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "tokenizer.json").unlink()
    shutil.copy(reasoner.model_path() / "tokenizer.json", tmp_path)
    assert 4 in kinds(examined(mrsa, "--model", str(tmp_path)), "FAIL")


@pytest.mark.slow
def test_a_tiny_zaya_reports_its_experts(tmp_path: Path, mrsa: Run) -> None:
    folder = folders.write(tmp_path / "zaya")
    found = examined(mrsa, "--model", str(folder))
    assert 9 in kinds(found, "ok")
    assert found["ok"], found["lines"]


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp", "chat"])
def test_a_server_is_examined(kind: str, mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "choose_tokenizer", lambda *_, **__: CharacterTokenizer())
    server = Running(FakeUpstream(kind, answer=lambda _, rng: boxed(42, f"it is {rng.randrange(10**9):09}" * 4)))
    try:
        found = examined(mrsa, "--upstream", server.url)
    finally:
        server.stop()
    assert {line["kind"] for line in found["lines"]} == {1, 2, 3, 4, 5, 6, 7, 8, 10}
    assert not kinds(found, "FAIL"), found["lines"]
    assert 8 in kinds(found, "ok")


def test_a_report_has_the_figures_of_a_zaya(tmp_path: Path, mrsa: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = folders.write(tmp_path / "zaya"), tmp_path / "report.json"
    mrsa("doctor", "--quick", "--model", str(folder), "--report", str(file))
    figures: dict[str, Any] = {}
    for line in json.loads(file.read_text())["lines"]:
        figures |= line["figures"]
    assert figures["fork_difference"] == 0
    assert figures["batch_difference"] < 1e-3
    assert set(figures["decode"]) == {"1", "4"}
    assert len(figures["skipped_by_layer"]) == 3
    assert figures["measured_bytes"] > 0
    doctor_tables.main([str(file)])
    tables = capsys.readouterr().out
    assert tables.count("| zaya none |") == 6  # speeds, three parts of memory, checks, routers
    assert "| 0 |" in tables


def test_a_report_names_neither_paths_nor_people(tmp_path: Path, mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "jane doe"
    folder = folders.write(home / "My Models" / "zaya")
    (folder / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setattr("platform.node", lambda: "Janes-MacBook.local")
    monkeypatch.setattr("getpass.getuser", lambda: "janedoe")
    file = tmp_path / "report.json"
    assert mrsa("doctor", "--quick", "--model", str(folder), "--report", str(file)).code == 1
    text = file.read_text()
    assert '"FAIL"' in text
    assert json.loads(text)["model"] == "zaya"
    for private in (str(tmp_path), "jane", "Jane", "My Models"):
        assert private not in text


def test_paths_addresses_and_names_are_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "Janes-MacBook.local")
    monkeypatch.setattr("getpass.getuser", lambda: "janedoe")
    cases = {
        "BLAS: /opt/lib/libopenblas.so, 1 thread": "BLAS: <path>, 1 thread",
        "no '/a b/c d/e.json' here": "no <path> here",
        r"in C:\Users\x\model and ~/models/zaya": "in <path> and <path>",
        "http://10.0.0.7:8000/v1 and my-host:8000": "<url> and <url>",
        "janedoe on janes-macbook": "<name> on <name>",
        "Zyphra/ZAYA1-8B, 12 tokens/s, github.com/a/b/pull/1": "Zyphra/ZAYA1-8B, 12 tokens/s, github.com/a/b/pull/1",
    }
    assert {text: doctor_report._strike(text, {}, []) for text in cases} == cases


def test_a_report_does_not_replace_a_file(tmp_path: Path, mrsa: Run) -> None:
    (tmp_path / "report.json").write_text("mine")
    ran = mrsa("doctor", "--quick", "--report", str(tmp_path / "report.json"))
    assert (ran.code, ran.out) == (2, "")
    assert (tmp_path / "report.json").read_text() == "mine"


def test_a_mac_has_its_limits_and_a_prediction(mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "working_set_bytes", lambda: 11_453_251_584)
    monkeypatch.setattr(device, "chip_name", lambda: "Apple M4")
    for name in ("set_memory_limit", "set_wired_limit"):
        monkeypatch.setattr(device.mx, name, lambda limit: 0)
    found = examined(mrsa)
    figures = {key: value for line in found["lines"] for key, value in line["figures"].items()}
    assert figures["limit_bytes"] == int(0.7 * 11_453_251_584)
    assert figures["wired_limit_bytes"] == figures["limit_bytes"]
    assert figures["expected"]["chip"] == "M4"


def test_a_server_with_one_random_stream_fails(mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "choose_tokenizer", lambda *_, **__: CharacterTokenizer())
    server = Running(FakeUpstream("chat", answer=lambda _, rng: boxed(42, "always the same long reasoning " * 3)))
    try:
        assert kinds(examined(mrsa, "--upstream", server.url), "FAIL") == {6}
    finally:
        server.stop()


@pytest.mark.parametrize("kind", ["vllm", "sglang", "mlx", "ollama", "text", "chat"])
def test_another_models_tokenizer_for_a_server_fails(kind: str, mrsa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(fake: FakeUpstream, body: dict[str, Any], _: Any) -> list[int]:
        return fake.tokenizer.encode(letters("", fake.entropy))[:12]

    monkeypatch.setattr(FakeUpstream, "prompt_of", lambda *_: "12345")  # it does not know the ids of the prompt
    monkeypatch.setattr(FakeUpstream, "generate", generate)
    server = Running(FakeUpstream(kind))
    try:
        found = examined(mrsa, "--upstream", server.url, "--tokenizer", str(reasoner.model_path()))
    finally:
        server.stop()
    assert kinds(found, "FAIL") == {4}, found["lines"]


def test_a_model_or_server_that_is_not_there_fails(mrsa: Run, tmp_path: Path) -> None:
    for arguments in (("--model", str(tmp_path)), ("--upstream", f"http://127.0.0.1:{free_port()}/v1")):
        assert 2 in kinds(examined(mrsa, *arguments), "FAIL")
