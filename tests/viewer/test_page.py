"""A run's file becomes one page: what is in it, what cannot break out of it, what is missing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html.parser
import json
import re
from pathlib import Path

import pytest

from markovian_rsa_mlx.audit import read_lenient
from markovian_rsa_mlx.errors import AuditError
from markovian_rsa_mlx.viewer import Links, file_page, live_page, runs_page, shared_script
from markovian_rsa_mlx.viewer.assets import asset, bundle
from markovian_rsa_mlx.viewer.view_model import find_tail, utf16_length

from .pages import blocks, data, texts
from .trails import FIXED, large_run, lines_of, one_round, small_run, write_lines


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("view") / "run.jsonl")


def page_of(path: Path) -> str:
    return file_page(read_lenient(path))


def test_page_contains_every_text_of_the_trail(path: Path) -> None:
    page = page_of(path)
    held, lines = texts(page), data(page)["lines"]
    recorded = lines_of(path)
    for line in recorded:
        if line["event"] == "trace_complete":
            assert held[line["trace_id"]] == line["text"]
    tails = [line for line in lines if line["event"] == "tail_extracted"]
    for slim, line in zip(tails, (x for x in recorded if x["event"] == "tail_extracted"), strict=True):
        assert held[slim["text"]][slim["from"] : slim["to"]] == line["tail_text"]
    assert len(lines) == len(recorded)
    assert blocks(page)["trail"] == path.read_bytes()


def test_page_leaves_out_derived_texts_and_token_ids(path: Path) -> None:
    page = page_of(path)
    assert not [key for key in texts(page) if "/" in key]  # prompts are rebuilt, tails are places in texts
    assert all(line["rebuilt"] for line in data(page)["lines"] if line["event"] == "aggregation_prompt")
    assert "token_ids" not in json.dumps(data(page)["lines"]).replace("control_token_ids", "").replace(
        "eos_token_ids", ""
    )


def test_answers_equal_those_of_the_selection(path: Path) -> None:
    lines = data(page_of(path))["lines"]
    selection = next(line for line in lines if line["event"] == "selection")
    own = {line["trace_id"]: line["answer"] for line in lines if line["event"] == "trace_complete"}
    assert [own[trace_id] for trace_id in selection["candidate_trace_ids"]] == selection["answers"]
    assert any(selection["answers"])


def test_page_contains_summaries_and_their_prompts(tmp_path: Path) -> None:
    path = small_run(tmp_path / "run.jsonl", carry="summary")
    page = page_of(path)
    recorded = {line["trace_id"]: line for line in lines_of(path) if line["event"] == "summary_complete"}
    held = texts(page)
    assert recorded
    for trace_id, line in recorded.items():
        assert held[f"{trace_id}/summary"] == line["text"]
        assert held[f"{trace_id}/summary-prompt"] == line["prompt_text"]


def test_prompt_of_another_program_is_kept_unchanged(path: Path, tmp_path: Path) -> None:
    lines = lines_of(path)
    for line in lines:
        if line["event"] == "aggregation_prompt":
            line["prompt_text"] += " (by hand)"
    page = page_of(write_lines(tmp_path / "other.jsonl", lines))
    prompts = {line["trace_id"]: line["prompt_text"] for line in lines if line["event"] == "aggregation_prompt"}
    assert {key: text for key, text in texts(page).items() if "/" in key} == {
        f"{k}/prompt": v for k, v in prompts.items()
    }


@pytest.mark.parametrize(
    ("text", "tail", "end", "at"),
    [
        ("one two three", "three", 13, 8),
        ("aXa</think>aXa", "aXa", 3, 0),
        ("aXb Xb rest", "Xb", 6, 4),
        ("reason</think>answer", "answer", 6, 14),
        ("one", "two", 3, -1),
        ("one", "", 3, -1),
    ],
)
def test_find_tail_prefers_the_end_of_the_reasoning(text: str, tail: str, end: int, at: int) -> None:
    assert find_tail(text, tail, end) == at


def test_carried_answer_is_found_in_the_answer(tmp_path: Path) -> None:
    """The reasoning has the same text, but the answer section was carried forward."""
    text = r"it is \boxed{42}, so I think</think>\boxed{42}"
    path = small_run(tmp_path / "run.jsonl", lambda request, rng: text, carry="answer")
    lines = data(page_of(path))["lines"]
    tails = [line for line in lines if line["event"] == "tail_extracted"]
    assert tails
    for line in tails:
        assert line["text"] == line["trace_id"]
        assert text[line["from"] :] == r"\boxed{42}"
    assert find_tail("42</think>42 42", "42", 2, 10) == 13
    assert find_tail("42</think>", "42", 2, 10) == 0  # a blank answer is not carried


def test_utf16_length_counts_code_units() -> None:
    assert [utf16_length(text) for text in ("a", "é", "\U0001d4b3", "\ud83d")] == [1, 1, 2, 1]


class Reader(html.parser.HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


HOSTILE = "</script><script>alert(1)</script><!--<script> ]]> <img src=x onerror=alert(1)> ' \" ` ${x} \x00 \u202e"


def test_hostile_text_adds_no_element(tmp_path: Path) -> None:
    """A page with hostile question, texts, answers and errors has the elements of a page with tame ones."""
    tame, wild = Reader(), Reader()
    tame.feed(page_of(one_round(tmp_path / "tame.jsonl", "so</think>42")))
    path = one_round(tmp_path / "wild.jsonl", f"{HOSTILE}</think>{HOSTILE}", question=HOSTILE)
    lines = lines_of(path)
    lines[0]["run_id"] = HOSTILE
    for line in lines:
        line["run_id"] = HOSTILE
    page = page_of(write_lines(path, lines))
    wild.feed(page)
    assert [tag for tag, _ in wild.found] == [tag for tag, _ in tame.found]
    assert "alert(1)" not in re.sub(r"<script[^>]*>[^<]*</script>", "", page)
    assert texts(page)["r0-00"] == f"{HOSTILE}</think>{HOSTILE}"


def test_policy_allows_only_the_scripts_of_the_page(path: Path) -> None:
    page = page_of(path)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'none'"
    assert rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    scripts = re.findall(r'<script(?: type="module")?>(.*?)</script>', page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in hashes]
    assert len(hashes) == 2
    reader = Reader()
    reader.feed(page)
    for tag, attributes in reader.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        assert "src" not in attributes
        assert attributes.get("href") in (None, "data:,", "#main")


def test_page_with_links_shares_its_scripts(path: Path) -> None:
    links = Links(scripts="../", trail="../../trails/a/00001-1.jsonl", home="../../report.html")
    alone, page = page_of(path), file_page(read_lenient(path), links=links)
    assert texts(page) == texts(alone)
    assert data(page)["lines"] == data(alone)["lines"]
    assert data(page)["about"]["links"] == {"trail": links.trail, "home": links.home}
    assert "trail" not in blocks(page)
    name, script = shared_script()
    assert len(alone) > len(script) > 10 * len(page)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    (loader,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert f'"../{name}"' in loader
    digest = base64.b64encode(hashlib.sha256(loader.encode()).digest()).decode()
    assert rules["script-src"] == f"'strict-dynamic' 'sha256-{digest}'"
    assert rules["trusted-types"] == "mrsa-shared"
    assert rules["default-src"] == rules["connect-src"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    reader = Reader()
    reader.feed(page)
    assert not [attributes for _, attributes in reader.found if "src" in attributes or "style" in attributes]


def test_live_pages_connect_only_to_their_server() -> None:
    for page, policy in (live_page("4f2a</script>"), runs_page()):
        assert "connect-src 'self'" in policy.header
        assert policy.header in page
        assert "4f2a</script>" not in page
    assert data(live_page("4f2a", "/base")[0])["about"] == {
        "mode": "live",
        "run_id": "4f2a",
        "base": "/base",
        "running": True,
        "silence_s": 30,
    }


def test_scripts_neither_end_early_nor_write_markup() -> None:
    for entry in ("app", "runs"):
        script = bundle(entry)
        assert "</script" not in script
        assert "<!--" not in script
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", script)
        assert not re.search(r"^(import|export) ", script, re.MULTILINE)
    assert "</script" not in asset("vendor/temml.min.js")


def test_verdicts_of_a_caller_are_kept(path: Path) -> None:
    page = file_page(read_lenient(path), reference="1", verdicts={"r0-00": True, "r0-01": False})
    assert data(page)["about"]["verdicts"] == {"r0-00": True, "r0-01": False}


def test_judge_marks_right_and_wrong_traces(path: Path) -> None:
    page = file_page(read_lenient(path), reference="1", judge=lambda answer: answer == "1")
    about, lines = data(page)["about"], data(page)["lines"]
    answers = {line["trace_id"]: line["answer"] for line in lines if line["event"] == "trace_complete"}
    assert about["verdicts"] == {trace_id: answer == "1" for trace_id, answer in answers.items()}
    assert set(about["verdicts"].values()) == {True, False}
    assert data(page_of(path))["about"]["verdicts"] == {}


def test_large_trail_is_left_out_unless_requested(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("markovian_rsa_mlx.viewer.page.MAX_TRAIL_BYTES", 100)
    trail = read_lenient(path)
    assert "trail" not in blocks(file_page(trail))
    assert "trail" in blocks(file_page(trail, with_trail=True))
    assert "trail" not in blocks(file_page(trail, with_trail=False))


def test_page_is_little_larger_than_its_texts(tmp_path: Path) -> None:
    """The full size is measured in the slow tests; this page has a tenth of it. Its own scripts do not count."""
    path = large_run(tmp_path / "large.jsonl", tokens=4_000)
    page = file_page(read_lenient(path), with_trail=False)
    all_texts = "".join(line["text"] for line in lines_of(path) if line["event"] == "trace_complete")
    own = len(file_page(read_lenient(one_round(tmp_path / "small.jsonl", "so")), with_trail=False))
    assert len(page) - own < 1.45 * len(gzip.compress(all_texts.encode(), 9))


def test_damaged_lines_are_listed_and_skipped(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes().split(b"\n")
    whole = len(content) - 1
    content[6] = b'{"event": "trace_complete", "run_id": 3}'
    content[8] = b"not JSON"
    trail = read_lenient(_write(tmp_path / "damaged.jsonl", b"\n".join(content)))
    assert [problem.line for problem in trail.problems] == [7, 9]
    assert len(trail.lines) == whole - 2
    assert [p["line"] for p in data(file_page(trail))["about"]["problems"]] == [7, 9]


def test_torn_last_line_is_reported_as_torn(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    trail = read_lenient(_write(tmp_path / "torn.jsonl", content[: len(content) // 2]))
    assert len(trail.problems) == 1
    assert "torn" in trail.problems[0].reason


def test_line_with_broken_characters_is_shown(tmp_path: Path) -> None:
    path = one_round(tmp_path / "run.jsonl", "so BROKEN</think>BROKEN")
    content = path.read_bytes().replace(b"so BROKEN", b"so \\ud83d\\u0000 \xff", 1)
    trail = read_lenient(_write(path, content))
    assert [problem.shown for problem in trail.problems] == [True]
    page = file_page(trail)
    assert texts(page)["r0-00"] == "so \ud83d\x00 \ufffd</think>BROKEN"


def test_invalid_settings_keep_the_question(path: Path, tmp_path: Path) -> None:
    lines = lines_of(path)
    lines[0]["config"]["population"] = "many"
    trail = read_lenient(write_lines(tmp_path / "odd.jsonl", lines))
    assert trail.start is not None
    assert trail.start.prompt == "What is it?"
    assert len(trail.problems) == 1
    assert data(file_page(trail))["lines"][0]["config"]["population"] == "many"


def test_nine_fixed_events_make_a_page(path: Path, tmp_path: Path) -> None:
    """Other programs write no setup, no clock and no selection."""
    lines = [line for line in lines_of(path) if line["event"] in FIXED]
    lines.append({"event": "their_own", "run_id": lines[0]["run_id"], "payload": HOSTILE})
    page = page_of(write_lines(tmp_path / "foreign.jsonl", lines))
    assert not data(page)["about"]["problems"]
    assert data(page)["lines"][-1] == {"event": "unknown", "name": "their_own"}
    assert {key for key in texts(page) if key.endswith("/prompt")}  # nothing to rebuild them from
    answers = [line["answer"] for line in data(page)["lines"] if line["event"] == "trace_complete"]
    assert any(answers)


def test_lines_of_another_run_are_left_out(path: Path, tmp_path: Path) -> None:
    other = small_run(tmp_path / "other.jsonl", seed=9)
    trail = read_lenient(_write(tmp_path / "both.jsonl", path.read_bytes() + other.read_bytes()))
    assert len(trail.lines) == len(lines_of(path))
    assert "another run" in trail.problems[-1].reason


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999", b"9" * 400])
def test_invalid_number_is_left_out_of_the_page(number: bytes, path: Path, tmp_path: Path) -> None:
    content = path.read_bytes().replace(b'"elapsed_s": ', b'"elapsed_s": ' + number + b', "was": ', 1)
    trail = read_lenient(_write(tmp_path / "odd.jsonl", content))
    assert [problem.shown for problem in trail.problems] == [False]
    assert len(trail.lines) == len(lines_of(path)) - 1
    held = json.loads(blocks(file_page(trail))["run"], parse_constant=pytest.fail)
    json.dumps(held, allow_nan=False)


def test_parents_of_the_same_or_a_later_round_are_dropped(path: Path, tmp_path: Path) -> None:
    lines = lines_of(path)
    for line in lines:
        if line["event"] == "aggregation_prompt" and line["trace_id"] == "r1-01":
            line["selected_tail_trace_ids"] = ["r1-01", "r0-00", "r2-00"]
    trail = read_lenient(write_lines(tmp_path / "odd.jsonl", lines))
    (problem,) = trail.problems
    assert problem.shown
    assert "r1-01 cannot have read r1-01, r2-00" in problem.reason
    assert ["r0-00"] in [line.raw.get("selected_tail_trace_ids") for line in trail.lines]


@pytest.mark.parametrize("content", [b"", b"hello\n", b'{"event": "theirs"}\n', b"[1, 2]\n"])
def test_other_file_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="not an audit trail"):
        read_lenient(_write(tmp_path / "notes.jsonl", content))


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
