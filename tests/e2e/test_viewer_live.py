"""A live run: the page fills in, survives a lost server, and ends equal to the file's view."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from markovian_rsa_mlx.audit.verify import verify_file
from markovian_rsa_mlx.method.answers import equal_text
from tests.viewer.trails import lines_of, small_run, write_lines

from ..backends.fake_upstream import FakeUpstream, Running, free_port, guess
from ..support.fakes import WithEOS
from .servers import MRSAServer
from .viewer_browser import Watched, watch, write_page
from .viewer_server import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

KINDS = ("trace_clock", "round_complete", "tail_extracted", "trace_complete")
#: The whole model of a run and all its texts, as the page holds them.
MODEL = """async () => {
  const texts = {};
  for (const key of mrsa.texts.keys().sort()) texts[key] = await mrsa.texts.get(key);
  const plain = (value) => value instanceof Map ? Object.fromEntries(value) : value;
  const run = Object.fromEntries(Object.entries(mrsa.run).map(([name, value]) => [name, plain(value)]));
  for (const trace of Object.values(run.traces)) delete trace.version;
  return JSON.stringify({ run, texts });
}"""


@pytest.fixture(scope="module", params=["tail", "answer", "summary"])
def trail(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("live") / "run.jsonl", carry=request.param)


def sections(shown: Watched) -> dict[str, Any]:
    """Return the text of each section of the overview, once it is complete."""
    shown.go("#/")
    shown.page.wait_for_function("() => mrsa.view.kept.size === document.querySelectorAll('.edge').length")
    shown.go("#/")
    found: dict[str, Any] = shown.page.evaluate(
        """() => {
          // Where the file lies only the file's own page knows.
          const place = [...document.querySelectorAll('.settings div')].find((d) => d.textContent.startsWith('file'));
          place?.remove();
          return Object.fromEntries([...document.querySelectorAll('main section')].map((s) => [s.id, s.textContent]));
        }"""
    )
    return found


def test_live_page_ends_equal_to_the_file_page(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    whole = trail.read_bytes().splitlines(keepends=True)
    growing = tmp_path / "growing.jsonl"
    growing.write_bytes(b"".join(whole[:2]))
    run_id = lines_of(trail)[0]["run_id"]
    with served(growing) as server:
        shown = watch(chrome.new_context(), f"{server.url}/runs/{run_id}", server.url)
        page = shown.page
        page.wait_for_selector(".lineage .node.is-waiting")  # the whole lineage is known before the first trace
        needed = page.locator(".lineage .node").count()
        assert page.locator(".state").inner_text() == "running"
        seen = []
        for number, line in enumerate(whole[2:], start=3):
            with growing.open("ab") as file:
                file.write(line)
            if number == len(whole) // 2:
                server.stop()  # a restart in mid-run
                page.wait_for_function(
                    "() => document.querySelector('.state').textContent.startsWith('connection lost')"
                )
                server.start()
            if number % 12 == 0:
                page.wait_for_function(f"() => mrsa.run.lines >= {number}")
                seen.append(page.evaluate("mrsa.run.all().filter((t) => t.state !== 'waiting').length"))
        page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
        assert seen[0] < seen[-1] == needed
        assert len(set(seen)) > 2
        assert page.locator(".lineage .node").count() == needed
        assert len(server.connections) >= 2
        assert server.connections[-1] >= len(whole) // 2 - 12  # it continued after the last line
        refused = [text for text in shown.errors if "ERR_CONNECTION" not in text and "ERR_INCOMPLETE" not in text]
        assert refused == []  # except those of the dead server
        shown.errors.clear()
        from_file = watch(chrome.new_context(), write_page(trail, tmp_path / "run.html"))
        assert json.loads(page.evaluate(MODEL)) == json.loads(from_file.page.evaluate(MODEL))
        assert sections(shown) == sections(from_file)
        page.get_by_text("Options").click()
        with page.expect_download() as got:
            page.get_by_text("Download trail").click()
        assert got.value.path().read_bytes() == trail.read_bytes()
        shown.check()
        from_file.check()
        assert shown.faults() == []


def test_page_sends_the_typed_key(chrome: Browser, trail: Path) -> None:
    run_id = lines_of(trail)[0]["run_id"]
    with served(trail, key="secret") as server:
        context = chrome.new_context()
        shown = watch(context, f"{server.url}/runs/{run_id}", server.url)
        shown.page.locator("input[name=key]").fill("secret")
        shown.page.keyboard.press("Enter")
        shown.page.wait_for_selector(".lineage .node.winner")
        shown.page.goto(f"{server.url}/")  # this tab knows the key now
        shown.page.wait_for_selector("table a")
        assert shown.faults() == []
        shown.page.locator("table a").first.click()
        shown.page.wait_for_selector(".lineage .node.winner")
        assert [text for text in shown.errors if "401" not in text] == []


def test_page_continues_after_the_key_changed(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    whole = trail.read_bytes().splitlines(keepends=True)
    growing = tmp_path / "growing.jsonl"
    growing.write_bytes(b"".join(whole[:10]))
    with served(growing) as server:
        page = watch(chrome.new_context(), f"{server.url}/runs/{lines_of(trail)[0]['run_id']}", server.url).page
        page.wait_for_function("() => mrsa.run.lines === 10")
        server.stop()
        server.key = "secret"
        server.start()
        page.locator("input[name=key]").fill("secret")
        page.keyboard.press("Enter")
        page.wait_for_selector(".lineage .node")
        growing.write_bytes(trail.read_bytes())
        page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
        assert page.evaluate("mrsa.run.lines") == len(whole)


def test_damaged_line_of_a_live_run_is_reported(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    whole = trail.read_bytes().splitlines(keepends=True)
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_bytes(b"".join([*whole[:6], b'{"event": <b>', b"\n", *whole[7:]]))
    with served(damaged) as server:
        shown = watch(chrome.new_context(), f"{server.url}/runs/{lines_of(trail)[0]['run_id']}", server.url)
        shown.page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
        shown.page.wait_for_selector(".problems li")
        (problem,) = shown.page.locator(".problems li").all_inner_texts()
        assert problem.startswith("Line 7: ")
        assert problem.endswith("(left out)")
        assert len(server.connections) == 1
        shown.check()


def test_damaged_live_run_equals_its_file_page(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    """An invalid or foreign line is left out alone, and both pages report the same problems."""
    lines = lines_of(trail)
    lines[0]["config"]["rounds"] = "two"
    numbers = {name: next(i for i, line in enumerate(lines) if line["event"] == name) for name in KINDS}
    del lines[numbers["trace_clock"]]["phase"]
    lines[numbers["round_complete"]]["round"] = 1.5
    lines[numbers["tail_extracted"]]["tail_text"] = None
    late = next(line for line in lines if line["event"] == "generation_start" and line["round"] == 1)
    late["parent_trace_ids"] = ["r2-00", late["trace_id"], "r0-00"]
    foreign = {**lines[numbers["trace_complete"]], "run_id": "abcd", "text": "not ours"}
    unknown = {"event": "theirs", "run_id": lines[0]["run_id"], "x": {"y": [1]}}
    broken = write_lines(tmp_path / "broken.jsonl", [*lines[:-1], foreign, unknown, lines[-1]])
    with served(broken) as server:
        shown = watch(chrome.new_context(), f"{server.url}/runs/{lines[0]['run_id']}", server.url)
        shown.page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
        from_file = watch(chrome.new_context(), write_page(broken, tmp_path / "run.html"))
        reported = [one.page.evaluate("mrsa.view.about.problems") for one in (shown, from_file)]
        for problems in reported:
            assert problems[0].pop("reason").startswith("config of run_start is refused: rounds must be ")
        assert reported[0] == reported[1]
        assert len(reported[0]) == 6
        assert json.loads(shown.page.evaluate(MODEL)) == json.loads(from_file.page.evaluate(MODEL))
        assert "not ours" not in shown.page.evaluate(MODEL)
        shown.check()
        from_file.check()


def test_failing_part_does_not_stop_the_page(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    whole = trail.read_bytes().splitlines(keepends=True)
    growing = tmp_path / "growing.jsonl"
    growing.write_bytes(b"".join(whole[:8]))
    with served(growing) as server:
        shown = watch(chrome.new_context(), f"{server.url}/runs/{lines_of(trail)[0]['run_id']}", server.url)
        page = shown.page
        page.wait_for_function("() => mrsa.run.lines === 8")
        page.evaluate("() => { mrsa.run.tally = () => { throw new Error('bad tally'); }; }")
        growing.write_bytes(b"".join(whole[:20]))
        page.wait_for_function("() => document.querySelector('main').textContent.includes('bad tally')")
        page.evaluate("delete mrsa.run.tally")
        growing.write_bytes(b"".join(whole))
        page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
        page.wait_for_selector(".lineage .node.winner")


def test_silent_connection_is_replaced(chrome: Browser, trail: Path) -> None:
    with served(trail, mute_after=10) as server:
        page = watch(chrome.new_context(), f"{server.url}/runs/{lines_of(trail)[0]['run_id']}", server.url).page
        page.wait_for_function("() => document.querySelector('.state').textContent.startsWith('connection lost')")
        assert page.evaluate("mrsa.run.lines") == 10
        server.mute_after = None
        page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
        assert server.connections[:2] == [0, 10]


def test_new_lines_keep_focus_selection_and_place(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    """Focus, selection, opened parts and the place on the page outlast what comes in."""
    whole = trail.read_bytes().splitlines(keepends=True)
    growing = tmp_path / "growing.jsonl"
    half = len(whole) // 2
    growing.write_bytes(b"".join(whole[:half]))
    with served(growing) as server:
        page = watch(chrome.new_context(), f"{server.url}/runs/{lines_of(trail)[0]['run_id']}", server.url).page
        page.wait_for_function(f"() => mrsa.run.lines === {half}")
        page.wait_for_timeout(600)  # the last of them are drawn
        page.locator("#settings summary").click()
        link = page.locator("#traces tbody a").nth(2)
        link.focus()
        page.evaluate("document.getSelection().selectAllChildren(document.querySelector('#question .text'))")
        chosen = page.evaluate("document.getSelection().toString()")
        held = page.evaluate("document.activeElement.getAttribute('href')")
        top = link.bounding_box()["y"]  # type: ignore[index]
        assert page.evaluate("scrollY") > 0
        growing.write_bytes(b"".join(whole[: half + 12]))
        page.wait_for_function(f"() => mrsa.app.shown?.includes(' {half + 12} ')")
        assert page.evaluate("document.activeElement.getAttribute('href')") == held
        assert page.evaluate("document.getSelection().toString()") == chosen != ""
        assert page.locator("#settings details").get_attribute("open") is not None
        assert abs(link.bounding_box()["y"] - top) < 2  # type: ignore[index]
        page.evaluate("document.getSelection().selectAllChildren(document.querySelector('#figures'))")
        before = page.locator("#figures").inner_text()
        growing.write_bytes(b"".join(whole))
        page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
        page.wait_for_function("() => mrsa.app.isLate")
        assert page.locator("#figures").inner_text() == before  # it waits until it is let go
        page.evaluate("document.getSelection().removeAllRanges()")
        page.wait_for_function("(old) => document.querySelector('#figures').innerText !== old", arg=before)


@contextmanager
def growing_run(chrome: Browser, trail: Path, folder: Path, lines: int, route: str = "") -> Iterator[Growing]:
    """The live page of the first lines of a trail; more of them come with `grow`."""
    growing = Growing(trail.read_bytes().splitlines(keepends=True), folder / "growing.jsonl")
    growing.path.write_bytes(b"".join(growing.whole[:lines]))
    with served(growing.path) as growing.server:
        url = f"{growing.server.url}/runs/{lines_of(trail)[0]['run_id']}{route}"
        growing.shown = watch(chrome.new_context(), url, growing.server.url)
        growing.drawn(lines)
        yield growing


@dataclass
class Growing:
    whole: list[bytes]
    path: Path
    server: Any = None
    shown: Any = None

    @property
    def page(self) -> Any:
        return self.shown.page

    def drawn(self, lines: int) -> None:
        self.page.wait_for_function(f"() => mrsa.run.lines === {lines} && mrsa.app.timer === null")

    def grow(self, lines: int) -> None:
        self.path.write_bytes(b"".join(self.whole[:lines]))
        self.drawn(lines)

    def after(self, event: str, trace_id: str) -> int:
        """How many lines there are up to this one."""
        events = [json.loads(line) for line in self.whole]
        return 1 + next(
            i for i, line in enumerate(events) if (line["event"], line.get("trace_id")) == (event, trace_id)
        )


def test_started_click_is_not_lost(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    with growing_run(chrome, trail, tmp_path, 20) as run:
        box = run.page.locator(".node.is-waiting").last
        box.scroll_into_view_if_needed()
        place = box.bounding_box()
        x, y = place["x"] + place["width"] - 20, place["y"] + 8  # where nothing is painted
        run.page.mouse.move(x, y)
        assert run.page.locator(".lineage.dimmed .node.lit").count() > 1
        run.grow(26)
        run.page.wait_for_timeout(50)
        assert run.page.locator(".lineage.dimmed .node.lit").count() > 1
        wanted = run.page.locator(".node.is-waiting").last.get_attribute("href")
        run.page.mouse.move(x, y)
        run.page.mouse.down()
        run.grow(34)
        run.page.mouse.up()
        run.page.wait_for_function(f"() => location.hash === '{wanted}'")
        run.shown.check()


def test_menu_keeps_focus_and_place(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    with growing_run(chrome, trail, tmp_path, 40) as run:
        page = run.page
        page.locator("#settings").scroll_into_view_if_needed()
        top = page.evaluate("scrollY")
        page.get_by_text("Options").click()
        page.locator("input[name=reference]").fill("2")
        page.keyboard.press("Tab")
        page.wait_for_selector(".node.right")
        page.wait_for_timeout(50)
        assert page.evaluate("document.activeElement.name") == "maths"
        assert page.evaluate("scrollY") == top > 0


def test_comparison_choice_gains_new_traces(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    with growing_run(chrome, trail, tmp_path, 8, "#/trace/r0-00") as run:
        page, choice = run.page, run.page.locator("main select")
        choice.focus()
        before = choice.locator("option").count()
        run.grow(len(run.whole) - 1)
        page.wait_for_timeout(50)
        assert choice.locator("option").count() == before  # it may be open
        page.locator("#main").focus()
        page.wait_for_function(f"() => document.querySelectorAll('main option').length > {before}")
        run.shown.check()


def test_late_marks_are_drawn(chrome: Browser, tmp_path: Path) -> None:
    path = small_run(tmp_path / "run.jsonl", lambda request, rng: r"so</think>\boxed{42}", carry="answer")
    with growing_run(chrome, path, tmp_path, 8) as run:
        number = run.after("tail_extracted", "r0-00")
        run.grow(number - 1)
        run.shown.go("#/trace/r0-00")
        assert run.page.locator("#answer mark.carried").count() == 0
        run.grow(number)
        run.page.wait_for_selector("#answer mark.carried")


def test_address_and_reload_lead_to_late_content(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    with growing_run(chrome, trail, tmp_path, 2, "#/trace/r0-02/at/3/2") as run:
        page = run.page
        run.grow(run.after("trace_complete", "r0-02"))
        page.wait_for_selector("mark.found")
        assert page.title().startswith("Trace r0-02")
        run.shown.go("#/")
        run.grow(len(run.whole))
        page.locator("#traces tbody th a").nth(3).focus()
        page.evaluate("scrollTo(0, 700)")
        page.reload()
        page.wait_for_function("() => scrollY === 700")
        assert page.evaluate("document.activeElement.getAttribute('href')") == "#/trace/r0-03"


def test_opened_search_results_stay_open(chrome: Browser, tmp_path: Path) -> None:
    path = small_run(tmp_path / "run.jsonl", lambda request, rng: r"hm hm hm hm hm</think>\boxed{1}")
    with growing_run(chrome, path, tmp_path, 8) as run:
        page = run.page
        run.grow(run.after("trace_complete", "r0-01"))
        run.shown.go("#/search/hm")
        page.get_by_text("2 more places").first.click()
        link = page.locator("details a").last
        link.focus()
        held = link.get_attribute("href")
        number = page.locator(".results details").count()
        run.grow(len(run.whole))
        page.wait_for_function(f"() => document.querySelectorAll('.results details').length > {number}")
        assert page.locator(".results details[open]").count() == 1
        assert page.evaluate("document.activeElement.getAttribute('href')") == held
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("[...document.querySelectorAll('details ul')].every((one) => one.childElementCount === 2)")


def test_stopped_run_stays_interrupted_without_its_server(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    with growing_run(chrome, trail, tmp_path, 20) as run:
        page = run.page
        page.evaluate("mrsa.app.connected('stopped')")
        page.wait_for_selector(".node.is-interrupted")
        run.server.stop()
        page.wait_for_function("() => document.querySelector('.state').textContent.startsWith('connection lost')")
        run.server.key = "secret"
        page.wait_for_timeout(500)
        assert page.locator(".node.is-interrupted").count() > 0
        run.server.start()
        page.locator("input[name=key]").fill("wrong")  # the field has the focus when it comes
        assert page.evaluate("document.activeElement.name") == "key"
        assert page.locator(".state").inner_text() == "not connected"
        page.keyboard.press("Enter")
        page.get_by_text("rejected the key").wait_for()
        page.evaluate("location.hash = '#/search/x'")
        page.wait_for_timeout(100)
        assert run.shown.faults() == []
        page.locator("input[name=key]").fill("secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("h1:text('Search')")
        assert page.locator(".state").inner_text() == "running"


def test_comparison_keeps_the_scroll_position_of_the_other_side(chrome: Browser, tmp_path: Path) -> None:
    path = small_run(tmp_path / "run.jsonl", lambda request, rng: "line\n" * 300 + r"</think>\boxed{1}")
    with growing_run(chrome, path, tmp_path, 8) as run:
        run.grow(run.after("trace_complete", "r0-00"))
        late = "r0-03" if run.after("trace_complete", "r0-03") > run.after("trace_complete", "r0-00") else "r1-00"
        run.shown.go(f"#/compare/r0-00/{late}")
        run.page.set_viewport_size({"width": 800, "height": 300})
        left = "document.querySelector('.sides .text')"
        top = run.page.evaluate(f"() => {{ {left}.scrollTop = 200; return {left}.scrollTop; }}")
        assert top > 0
        run.grow(len(run.whole))
        run.page.wait_for_function("() => document.querySelectorAll('.sides .text').length === 2")
        assert run.page.evaluate(f"{left}.scrollTop") == top


def test_list_keeps_its_length_after_back(chrome: Browser, trail: Path) -> None:
    with served(trail) as server:
        server.others = 30
        page = watch(chrome.new_context(), f"{server.url}/", server.url).page
        page.get_by_text("Show older runs").focus()
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelectorAll('tbody tr').length === 32")
        assert page.evaluate("document.activeElement.id") == "main"  # the button is gone: all are shown
        assert page.locator("#announcement").inner_text() == "32 runs are shown"
        page.locator("tbody a").last.click()
        page.wait_for_selector(".lineage .node")
        page.go_back()
        page.wait_for_function("() => document.querySelectorAll('tbody tr').length === 32")
        page.wait_for_function("() => scrollY > 0")
        assert page.evaluate("document.activeElement === [...document.querySelectorAll('tbody a')].at(-1)")


def test_list_shows_older_runs_and_links_only_to_trails(chrome: Browser, trail: Path) -> None:
    with served(trail) as server:
        server.others = 30
        shown = watch(chrome.new_context(), f"{server.url}/", server.url)
        page = shown.page
        assert page.locator("tbody tr").count() == 1 + 20
        assert page.locator("tbody a").count() == 20
        assert page.locator("tbody tr").first.locator("a").count() == 0  # an ordinary completion keeps no trail
        page.get_by_text("Show older runs").click()
        page.wait_for_function("() => document.querySelectorAll('tbody tr').length === 32")
        assert page.get_by_text("Show older runs").count() == 0
        page.locator("tbody a").nth(3).focus()
        row = page.evaluate("document.querySelector('tbody tr')")
        page.wait_for_timeout(6000)  # it has been asked again
        assert server.listed >= 3
        assert page.evaluate("document.activeElement === document.querySelectorAll('tbody a')[3]")
        assert row is not None
        assert shown.faults() == []
        shown.check()


@contextmanager
def held_upstream() -> Iterator[tuple[Running, threading.Event]]:
    """Yield a server that answers two requests, and further ones only once the event is set."""
    released = threading.Event()

    def answer(prompt: str, rng: random.Random) -> str:
        if len(fake.ids) >= 2 and not released.is_set():
            fake.pause = 3600.0
        return guess(prompt, rng)

    template = "<system> <user> <assistant> </think>"
    props = {"chat_template": template, "eos_token": "<eos>", "bos_token": ""}
    fake = FakeUpstream("llama.cpp", answer, WithEOS(), extra_props=props)
    running = Running(fake)
    try:
        yield running, released
    finally:
        running.stop()


def test_live_page_survives_a_restart_of_the_server(chrome: Browser, tmp_path: Path) -> None:
    body = {
        "messages": [{"role": "user", "content": "Guess a number."}],
        "rsa_t": 2,
        "rsa_n": 6,
        "rsa_k": 2,
        "rsa_final_n": 3,
        "seed": 1942171667,  # more answers than colours, and the first to come are not those of the first traces
        "stream": True,
    }
    port = free_port()
    with held_upstream() as (upstream, released), httpx2.Client(timeout=60) as client:
        options = ("--upstream", upstream.url, "--grace", "0", "--concurrency", "1")
        first = MRSAServer(tmp_path, *options, port=port)
        with client.stream("POST", f"{first.url}/v1/chat/completions", json=body) as answer:
            run_id = answer.headers["X-MRSA-Run-Id"]
            shown = watch(chrome.new_context(), f"{first.url}/runs/{run_id}", first.url)
            page = shown.page
            page.wait_for_function("() => mrsa.run.all().filter((t) => t.state === 'done').length === 2")
            assert page.locator(".state").inner_text() == "running"
            assert first.stop() == 0
        page.wait_for_function("() => document.querySelector('.state').textContent !== 'running'")
        released.set()
        upstream.fake.pause = 0.0
        second = MRSAServer(tmp_path, *options, port=port)
        assert client.post(f"{second.url}/v1/runs/{run_id}/resume").status_code == 202
        page.wait_for_function("() => document.querySelector('.state').textContent === 'finished'")
        (trail,) = (tmp_path / "runs").glob("*.jsonl")
        verify_file(trail, equivalent=equal_text)
        from_file = watch(chrome.new_context(), write_page(trail, tmp_path / "run.html"))
        assert json.loads(page.evaluate(MODEL)) == json.loads(from_file.page.evaluate(MODEL))
        assert sections(shown) == sections(from_file)
        assert second.stop() == 0


def test_colours_stay_with_their_answers(chrome: Browser, trail: Path, tmp_path: Path) -> None:
    """The answer that comes first keeps its colour, also when another one is chosen."""
    colours = "() => Object.fromEntries(mrsa.view.colours)"
    whole = trail.read_bytes().splitlines(keepends=True)
    with growing_run(chrome, trail, tmp_path, 8) as run:
        seen: dict[str, int] = {}
        for lines in range(12, len(whole) + 1, 8):
            run.grow(lines)
            now = run.page.evaluate(colours)
            assert seen.items() <= now.items()
            seen = now
        run.grow(len(whole))
        assert len(seen) > 1
        assert seen.items() <= run.page.evaluate(colours).items()
        run.shown.check()
