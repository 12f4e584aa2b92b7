"""Mathematical equivalence, in a worker process that nothing a model writes can hurt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from markovian_rsa_mlx.equivalence import MathEquivalence, equivalence_for
from markovian_rsa_mlx.method.answers import equal_text
from markovian_rsa_mlx.method.equality import engine_form


@pytest.fixture(scope="module")
def same() -> Iterator[MathEquivalence]:
    with MathEquivalence() as equivalence:
        yield equivalence


#: A term that math-verify would compute with for minutes.
SLOW = r"\prod_{k=1}^{10^8} k"


def worker_pid(equivalence: MathEquivalence) -> int:
    (worker,) = equivalence._workers._idle
    return worker.pid


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1/2", "0.5"),
        (r"\frac{1}{2}", "0.5"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"\{1, 2\}", r"\{2, 1\}"),
        ("(1, 2)", "(1,2)"),
        ("x^2 + 2x + 1", "(x+1)^2"),
        ("1,000", "1000"),
        ("No", " No. "),
    ],
)
def test_equal_values_are_equal_answers(same: MathEquivalence, first: str, second: str) -> None:
    assert same(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [("1/2", "0.51"), ("(1, 2)", "(2, 1)"), (r"\sqrt{2}", "1.5"), ("12", "21"), ("x", "y"), ("yes", "no"), ("7", "")],
)
def test_other_values_are_not(same: MathEquivalence, first: str, second: str) -> None:
    assert not same(first, second)


def test_answers_of_old_runs_are_compared_as_they_were(same: MathEquivalence) -> None:
    old = same.session(rules=1)
    assert old("1/2", "0.5")
    assert old(r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}")  # wrong, and recorded so
    assert not same(r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}")


@pytest.mark.parametrize("hostile", ["}{", "\\", "\\boxed{", "\x00", "\ud800", "\n\n", "$" * 50, "{" * 20, "∫" * 99])
def test_no_text_stops_the_worker(same: MathEquivalence, hostile: str) -> None:
    same("1/2", hostile)
    same(hostile, "1/2")
    assert same("0.25", "1/4")


def test_a_very_long_answer_is_compared_as_text_only(same: MathEquivalence) -> None:
    assert same("1" * 5000, "1" * 5000)
    assert not same("1" * 5000, "1" * 5000 + ".0")


def test_hostile_input_costs_no_more_than_the_limit_and_no_zombie() -> None:
    with MathEquivalence(time_limit_s=2.5) as equivalence:
        assert equivalence("x/2", "0.5x")
        first_worker, start = worker_pid(equivalence), time.monotonic()
        assert not equivalence(SLOW, "x+1")
        assert time.monotonic() - start < 15  # it would take hours
        assert equivalence("3x/4", "0.75x")  # another worker answers if that one had to be ended
        if worker_pid(equivalence) != first_worker:
            assert not alive(first_worker)  # reaped, too: a zombie still has its pid


def test_a_comparison_that_asks_several_questions_has_one_limit() -> None:
    slow = [rf"\prod_{{k=1}}^{{{10**8 + n}}} k" for n in range(6)]
    with MathEquivalence(time_limit_s=1.0) as equivalence:
        assert equivalence("x/2", "0.5x")
        start = time.monotonic()
        assert equivalence.compare(f"({', '.join(slow)})", "(x+1, x+2, x+3, x+4, x+5, x+6)") == "undecided"
        assert time.monotonic() - start < 5  # not one limit for each of six
        assert set(equivalence._unreadable) <= {*map(engine_form, slow[:2])}  # the others had no time


def test_a_term_that_failed_by_itself_is_not_asked_about_again() -> None:
    with MathEquivalence(time_limit_s=1.0) as equivalence:
        assert equivalence.compare(SLOW, "x+1") == "undecided"
        start = time.monotonic()
        assert [equivalence.compare(SLOW, f"x+{n}") for n in range(2, 30)] == ["undecided"] * 28
        assert time.monotonic() - start < 10  # not one limit for each of 28


@pytest.mark.parametrize(
    "tower", ["9^{9^{9^{9}}}", "10^{9}!", "9**9**9**9", "\\binom{10^9}{10^8}", "2^{2^{2^{2^{2^2}}}}"]
)
def test_numbers_too_large_to_compute_never_reach_a_worker(tower: str) -> None:
    with MathEquivalence() as equivalence:
        assert equivalence.compare(tower, tower + "+1") == "undecided"
        assert not equivalence._workers._idle


def test_a_vote_over_hostile_answers_ends_within_its_limit() -> None:
    answers = [rf"\prod_{{k=1}}^{{{10**8 + n}}} k" for n in range(12)]
    with MathEquivalence(time_limit_s=4.0) as equivalence:
        assert equivalence("x/2", "0.5x")
        comparisons, start = equivalence.session(2.0), time.monotonic()
        verdicts = {comparisons.compare(one, other) for one in answers for other in answers if one != other}
        assert verdicts == {"undecided"}
        assert time.monotonic() - start < 15  # not one limit for each of 132
        assert equivalence("3x/4", "0.75x")  # other runs have their own limit


def test_a_cancelled_comparison_ends_at_once() -> None:
    with MathEquivalence(time_limit_s=30.0) as equivalence:
        assert equivalence("x/2", "0.5x")
        comparisons = equivalence.session()
        start = time.monotonic()
        threading.Timer(0.3, comparisons.cancel).start()
        assert comparisons.compare(SLOW, "x+1") == "undecided"
        assert time.monotonic() - start < 15  # half of the limit
        assert comparisons.compare("3x/5", "0.6x") == "undecided"
        assert comparisons("1/2", "0.5")  # rules continue to decide


def test_a_hostile_run_does_not_hold_up_another_one() -> None:
    with MathEquivalence(time_limit_s=20.0) as equivalence:
        assert equivalence("x/2", "0.5x")
        hostile = equivalence.session()
        thread = threading.Thread(target=hostile.compare, args=(SLOW, "x+1"))
        thread.start()
        assert equivalence("3x/4", "0.75x")
        assert thread.is_alive()
        hostile.cancel()
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_has_a_limit_of_memory(same: MathEquivalence) -> None:
    assert same("x/2", "0.5x")
    limits = Path(f"/proc/{worker_pid(same)}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max address space"))
    used = int(Path(f"/proc/{worker_pid(same)}/statm").read_text().split()[0]) * 4096
    assert int(line.split()[3]) <= used + 600 * 2**20


def test_works_from_another_thread_and_from_several_at_once(same: MathEquivalence) -> None:
    results: list[bool] = []
    threads = [threading.Thread(target=lambda n=n: results.append(same(f"{n}/2", str(n / 2)))) for n in (1, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_a_killed_worker_leaves_the_question_undecided_and_the_next_gets_a_new_one() -> None:
    with MathEquivalence() as equivalence:
        assert equivalence("x/2", "0.5x")
        pid = worker_pid(equivalence)
        os.kill(pid, signal.SIGKILL)
        assert not equivalence("x/4", "0.25x")
        assert not alive(pid)
        assert equivalence("y/8", "0.125y")


def test_a_verdict_is_remembered(same: MathEquivalence) -> None:
    with MathEquivalence() as equivalence:
        equivalence._known["equal", "0.5x", "x/2"] = "different"
        assert not equivalence("x/2", "0.5x")


@pytest.mark.parametrize(
    ("second", "verdict"),
    [
        ("0.5", "same"),
        ("0.51", "different"),
        ("", "different"),
        ("9^{9^{9^{9}}}", "undecided"),
        ("1" * 5000, "undecided"),
    ],
)
def test_a_verdict_separates_wrong_answers_from_undecided_ones(
    same: MathEquivalence, second: str, verdict: str
) -> None:
    assert same.compare("1/2", second) == verdict


def test_close_ends_the_worker_and_can_be_repeated() -> None:
    equivalence = MathEquivalence()
    assert equivalence("x/2", "0.5x")
    pid = worker_pid(equivalence)
    equivalence.close()
    equivalence.close()
    assert not alive(pid)


def test_rules_need_no_worker() -> None:
    with MathEquivalence() as equivalence:
        assert equivalence("$12$", "12.")
        assert equivalence("1/2", "0.5")
        assert not equivalence("(1, 2)", "(2, 1)")
        assert not equivalence._workers._idle


def test_a_puzzle_is_compared_as_text(same: MathEquivalence) -> None:
    assert equivalence_for("text", same) is equal_text
    assert equivalence_for("math", same) is same


SCRIPT = """
print("top of the script")
from markovian_rsa_mlx.equivalence import MathEquivalence
equivalence = MathEquivalence()
print(equivalence("x/2", "0.5x"), equivalence._workers._idle[0].pid)
"""


def test_a_plain_script_is_not_run_a_second_time(tmp_path: Path) -> None:
    """No `if __name__ == "__main__"` guard, no `close`; and a file in the user's folder that shadows a library."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "sympy.py").write_text("raise ImportError('not this one')")
    done = subprocess.run([sys.executable, "-P", "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    top, answer = done.stdout.splitlines()
    assert top == "top of the script"
    assert answer.startswith("True ")
    assert not alive(int(answer.split()[1]))


def test_the_worker_ends_with_a_parent_that_is_killed() -> None:
    code = SCRIPT + "import sys, time; sys.stdout.flush(); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        pid = int(parent.stdout.readline().split()[1])
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return  # ended; only its new parent has not looked yet
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
