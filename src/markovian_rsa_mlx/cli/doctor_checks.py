"""The checks of `mrsa doctor` that need an engine: from the chat template to a verified run.

Each is a generator of lines and may raise, which its caller turns into a line.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config import RSAConfig, Sampling
from ..errors import ContextLengthError, MarkovianRSAError
from ..hub import TOKENIZER_FILES, cached_folder
from ..tokenizer import ChatMessage
from .engine_options import ModelChoice
from .terminal import count, size

if TYPE_CHECKING:
    from ..audit.events import RunSetupEvent
    from ..backends.base import GenerationRequest
    from ..backends.mlx import MLXEngine
    from ..orchestrator import MarkovianRSAOrchestrator

State = Literal["ok", "warn", "FAIL"]
_PLAIN_TEXT = (
    "The river rises in the mountains and flows through three countries before it reaches the sea. In the summer many "
    "people visit the old towns on its banks, and in the winter the water is often frozen for several weeks. "
)
#: The embedded model only expects text like its own.
_SUM = "State the final answer to the following arithmetic problem: 12 + 34 - 11 ="
_SUM_THOUGHT = "1: 12 + 34: 12+30=42+4=46\n2: 46 - 11: 46-10=36-1=35\ntotal 35\n"
_STORY = "Write a long story about a fox, a lighthouse and a storm. Be as inventive as you can."
_ROUND_TRIPS = ("Hello, world!", "a  b\n\n\tc ", "x = {'k': [1, 2.5]}  # 3 < 4 & 5 > 2", "naïve café", "数学 🦊 \u200d")
_MARK = re.compile(r"<\|?[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\]")
_MAX_MARKS = 200
#: A model has at most so many times the tokens of its tokenizer; vocabularies are padded, but not to several times.
_MAX_PADDING = 4
#: Ordinary text costs less than this part of what random tokens cost. With a wrong tokenizer it is about as much.
_EXPECTED = 0.75
#: The largest difference of the log-probabilities of one step between a batch and a single row.
_BOUNDS = {"float32": 1e-3}
_BOUND_16_BITS = 0.25
#: The largest deviation of the measured memory from the plan: a share, and bytes for buffers that do not grow.
_SHARE, _BUFFERS = 0.10, 20e6


@dataclass(frozen=True)
class Line:
    """One finding: its kind (a key of `doctor.NAMES`), the observation, and advice unless all is well.

    `figures` has the numbers of the observation for tables, in bytes, seconds, tokens or tokens per second.
    """

    kind: int
    state: State
    seen: str
    advice: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


class Subject:
    """The engine under examination, with shortcuts to generate."""

    def __init__(self, orchestrator: MarkovianRSAOrchestrator, choice: ModelChoice, quick: bool) -> None:
        self.orchestrator, self.choice, self.quick = orchestrator, choice, quick
        self.failed: set[int] = set()  # kinds so far
        self.engine, self.tokenizer = orchestrator.engine, orchestrator.engine.tokenizer

    @cached_property
    def mlx(self) -> MLXEngine | None:
        """The engine, if it is the one on this machine."""
        if self.choice.upstream is not None:
            return None
        from ..backends.mlx import MLXEngine

        return self.engine if isinstance(self.engine, MLXEngine) else None

    @cached_property
    def folder(self) -> Path | None:
        """The model's folder, if it is on this machine."""
        from .. import reasoner

        if self.choice.upstream is not None:
            return None
        choice = self.choice
        if choice.embedded:
            return reasoner.model_path()
        return cached_folder(choice.model_id, TOKENIZER_FILES, choice.revision)

    @cached_property
    def control(self) -> frozenset[int]:
        """Ids that text of a user must not become."""
        marks = {ids[0] for ids in self.tokenizer.end_of_thinking if len(ids) == 1}
        return self.tokenizer.control_ids | self.tokenizer.eos_ids | marks

    def setup(self, *messages: ChatMessage) -> RunSetupEvent:
        """Return the setup of a run on this chat: its prompt as a run makes it."""
        from ..run.setup import make_setup

        return make_setup(
            run_id="doctor",
            seed=1,
            prompt=messages,
            config=RSAConfig(rounds=0, population=1, seed=1),
            engine=self.engine,
        )

    def request(self, question: str, seed: int, max_tokens: int, *, temperature: float = 1.0) -> GenerationRequest:
        from ..backends.base import GenerationRequest

        messages = (ChatMessage(role="user", content=question),)
        try:
            setup = self.setup(*messages)
            text, ids = setup.prompt_text, tuple(setup.prompt_token_ids)
        except MarkovianRSAError:  # the template is broken: other checks continue without it
            text, ids = question, tuple(self.tokenizer.encode(question))
        return GenerationRequest(
            f"doctor-{seed}", messages, ids, max_tokens, seed, Sampling(temperature), prompt_text=text
        )

    def generate(self, *requests: GenerationRequest) -> list[tuple[int, ...]]:
        """Return the ids of traces that are generated at the same time."""
        import asyncio

        from ..backends.base import SilentListener
        from ..run.sync import run_sync

        async def gather() -> list[tuple[int, ...]]:
            results = await asyncio.gather(*(self.engine.generate(each, SilentListener()) for each in requests))
            return [result.token_ids for result in results]

        return run_sync(gather())

    def log_probability(self, prompt: Sequence[int], ids: Sequence[int]) -> float | None:
        from ..run.sync import run_sync

        return run_sync(self.engine.log_probability(tuple(prompt), tuple(ids), Sampling()))


def check_template(subject: Subject) -> Iterator[Line]:
    tokenizer = subject.tokenizer
    system, first, answer, second = (f"{word}-7f3a" for word in ("rules", "question", "answer", "followup"))
    turn = [ChatMessage(role="user", content=first)]
    chats = {
        "thinking on": (turn, True),
        "thinking off": (turn, False),
        "a second turn": (
            [*turn, ChatMessage(role="assistant", content=answer), ChatMessage(role="user", content=second)], True,
        ),
        "a system message": ([ChatMessage(role="system", content=system), *turn], True),
    }  # fmt: skip
    texts: dict[str, str] = {}
    for name, (messages, thinking) in chats.items():
        problem, remedy = "", "Put instructions into the question."
        try:
            texts[name] = tokenizer.render_chat(messages, thinking)
            problem = _chat_problem(texts[name], [message["content"] for message in messages])
        except Exception as error:
            problem, remedy = f"refused ({error})", "Its text is put before the first message of the user."
        if problem:
            bad: State = "warn" if name == "a system message" else "FAIL"
            advice = remedy if bad == "warn" else _TEMPLATE_ADVICE
            yield Line(3, bad, f"{name}: {problem}", advice)
    plain = texts.get("thinking on", "")
    if plain.endswith(first) and not _MARK.search(plain.removesuffix(first).removeprefix("<s>").removeprefix("<bos>")):
        yield Line(3, "warn", "no chat template: the model is a base model, or its files are incomplete")
        return
    if plain and not plain.partition(first)[2].strip():
        yield Line(3, "FAIL", "the template does not begin the assistant's reply", _TEMPLATE_ADVICE)
    rendered = len([name for name in chats if name in texts])
    tools = "tools" in _template_source(subject.folder)
    differs = "differ" if texts.get("thinking on") != texts.get("thinking off") else "are the same"
    yield Line(
        3, "ok", f"{rendered} of 4 chats rendered; thinking on and off {differs}; tools: {'yes' if tools else 'no'}"
    )
    marks = tokenizer.find_marks()
    yield Line(3, "ok", f"thinking marks {marks.begin} ... {marks.end}" if marks else "no thinking marks")
    if "a second turn" in texts:
        yield from _marks_of_template(subject, subject.setup(*chats["a second turn"][0]))


_TEMPLATE_ADVICE = "Compare chat_template with the original model's; it decides what the model reads."


def _chat_problem(text: str, contents: Sequence[str]) -> str:
    """Return how a rendered chat is wrong: each content must be in it once, in order."""
    if wrong := [content for content in contents if text.count(content) != 1]:
        return f"the message {wrong[0]!r} is in the prompt {text.count(wrong[0])} times"
    places = [text.index(content) for content in contents]
    return "" if places == sorted(places) else "the messages are in another order"


def _template_source(folder: Path | None) -> str:
    if folder is None:
        return ""
    files = [folder / name for name in ("chat_template.jinja", "tokenizer_config.json", "chat_template.json")]
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file())


def _marks_of_template(subject: Subject, setup: RunSetupEvent) -> Iterator[Line]:
    """Check that the marks of a chat with two turns are special tokens, and that one of them ends a trace."""
    marks = _MARK.findall(setup.prompt_text)
    special = [token for token in setup.prompt_token_ids if token in subject.control]
    if len(marks) > len(special):
        names = ", ".join(dict.fromkeys(marks))
        seen = f"{len(marks) - len(special)} marks of the template are not special tokens of the tokenizer ({names})"
        foreign: State = "FAIL" if all(mark.startswith("<") for mark in marks) else "warn"  # [INST] is often text
        yield Line(3, foreign, seen, "The tokenizer and the template may be of different models.")
    if marks and not subject.tokenizer.eos_ids & set(special):
        advice = "Set eos_token_id in config.json or generation_config.json to the mark that ends a turn."
        yield Line(3, "warn", "no EOS token ends a turn in the template, so traces may not end", advice)


def check_tokenizer(subject: Subject) -> Iterator[Line]:
    tokenizer = subject.tokenizer
    changed = [text for text in _ROUND_TRIPS if tokenizer.decode(tokenizer.encode(text)) != text]
    if _ROUND_TRIPS[0] in changed:
        seen = f"{_ROUND_TRIPS[0]!r} becomes {tokenizer.decode(tokenizer.encode(_ROUND_TRIPS[0]))!r}"
        yield Line(4, "FAIL", seen, "The tokenizer's files are incomplete or of another model.")
    elif changed:
        yield Line(4, "warn", f"{len(changed)} of {len(_ROUND_TRIPS)} texts change, like {changed[0]!r}")
    else:
        yield Line(4, "ok", f"{len(_ROUND_TRIPS)} texts come back unchanged")
    fox = tokenizer.encode("🦊")
    torn = [tokenizer.decode(fox[:end]) for end in range(1, len(fox))]
    if any("🦊" in text for text in torn):
        yield Line(4, "warn", "a part of a character's tokens decodes to the whole character")
    yield from _special_tokens(subject)
    yield from _vocabulary(subject)
    yield from _expected_text(subject)


def _special_tokens(subject: Subject) -> Iterator[Line]:
    """Check that marks in a question stay text: the prompt must hold the same reserved tokens as without them."""
    if 3 in subject.failed:
        return
    plain = subject.setup(ChatMessage(role="user", content="What is x?"))
    reserved = subject.tokenizer.reserved
    names = {*_MARK.findall(plain.prompt_text), "<|im_end|>", "<|endoftext|>", "</s>", "<think>", "</think>", "<|end|>"}
    names |= set(sorted(reserved)[:_MAX_MARKS])
    marked = subject.setup(ChatMessage(role="user", content=f"What is {' '.join(sorted(names))}?"))
    ids = subject.control | set(reserved.values())
    own, found = (Counter(token for token in setup.prompt_token_ids if token in ids) for setup in (plain, marked))
    if own == found:
        yield Line(4, "ok", f"{len(names)} marks in a question stay text")
    else:
        changed = (own - found).total() + (found - own).total()
        advice = "A question that quotes such marks could end its own turn. Report the model; its tokenizer is unusual."
        yield Line(4, "FAIL", f"marks in a question change {changed} special tokens of the prompt", advice)


def _vocabulary(subject: Subject) -> Iterator[Line]:
    own = getattr(subject.tokenizer, "vocabulary_size", None)
    if subject.mlx is None or own is None:
        return
    logits = subject.mlx.admission.footprint.vocabulary
    highest = max([*subject.tokenizer.eos_ids, *subject.control])
    if own > logits or highest >= logits or own < logits / _MAX_PADDING:
        seen = f"the tokenizer has {count(own)} tokens, the model {count(logits)}"
        yield Line(4, "FAIL", seen, "The tokenizer is of another model; copy the files of the original.")
    else:
        yield Line(4, "ok", f"{count(own)} tokens, the model has {count(logits)}")


def _expected_text(subject: Subject) -> Iterator[Line]:
    """Compare the probability of ordinary text with that of random tokens: with a wrong tokenizer they are alike."""
    import random

    if subject.mlx is None:
        return
    vocabulary, draw = subject.mlx.admission.footprint.vocabulary, random.Random(1)

    def loss_of(prompt: list[int], ids: list[int]) -> float:
        return -(subject.log_probability(prompt, ids) or 0.0) / len(ids)

    start, encode = subject.tokenizer.encode("The"), subject.tokenizer.encode
    loss = min(
        loss_of(start, encode(_PLAIN_TEXT)),
        loss_of(list(subject.request(_SUM, 1, 1).prompt_token_ids), encode(_SUM_THOUGHT)),
    )
    loss_of_noise = loss_of(start, [draw.randrange(vocabulary) for _ in range(60)])
    seen = f"ordinary text costs {loss:.1f} nats per token, random tokens {loss_of_noise:.1f}"
    if loss < _EXPECTED * loss_of_noise:
        yield Line(4, "ok", seen)
    elif abs(loss_of_noise - math.log(vocabulary)) < 1:
        yield Line(4, "warn", f"{seen}: the model expects nothing", "Its weights may be untrained or damaged.")
    else:
        yield Line(4, "FAIL", seen, "The model does not know this tokenizer's ids; copy the files of the original.")


def check_batching(subject: Subject) -> Iterator[Line]:
    from ..run.sync import run_sync

    tokens = 12 if subject.quick else 32
    # Greedy, so that the tokens do not depend on seeds.
    pair = [subject.request(text, 1, tokens, temperature=0) for text in (_STORY, "What is in a name? " * 3)]
    alone = [ids for request in pair for ids in subject.generate(request)]
    same = alone == subject.generate(*pair)
    if subject.mlx is None:
        if same:
            yield Line(5, "ok", "two requests at the same time give the same tokens as one after the other")
        else:
            advice = "Without seeds, or with another rounding in batches, that is normal; a trail stays verifiable."
            yield Line(5, "warn", "two requests at the same time give other tokens than one after the other", advice)
        return
    profiler, dtype = subject.mlx.timer(), subject.engine.info.dtype
    if subject.mlx.admission.max_rows == 1:
        yield Line(5, "warn", "one trace at a time: caches of this architecture cannot be merged")
        return
    bound = _BOUNDS.get(dtype, _BOUND_16_BITS) if subject.engine.info.quantization == "none" else _BOUND_16_BITS
    difference = run_sync(profiler.batch_difference((40, 23)))
    tokens_seen = "the same" if same else "other"
    seen = f"two rows and one: {tokens_seen} tokens, log-probabilities within {difference:.1g} ({dtype})"
    right = difference <= bound and (same or bound > 1e-3)
    advice = "Run one trace at a time (--concurrency 1), and report the architecture."
    figures: dict[str, Any] = {"batch_difference": difference, "same_tokens": same}
    yield Line(5, "ok" if right else "FAIL", seen, "" if right else advice, figures)
    fork = run_sync(profiler.fork_difference(40, 12))
    figures = {"fork_difference": fork}
    if fork == 0:
        yield Line(5, "ok", "a prompt continued from a copied prefix gives the same logits", figures=figures)
    else:
        seen = f"a prompt continued from a copied prefix gives logits that differ by {fork:.1g}"
        yield Line(5, "FAIL", seen, advice, figures)
    guess = run_sync(profiler.guess_difference((40, 23, 31), width=4))
    run_sync(profiler.close())
    if guess is None:
        yield Line(5, "ok", "no tokens are guessed: caches of this architecture cannot take them back")
        return
    seen = f"steps that check guessed tokens and single ones: log-probabilities within {guess:.1g}"
    advice = "Switch guesses off (--speculate off), and report the architecture."
    right = guess <= bound
    yield Line(5, "ok" if right else "FAIL", seen, "" if right else advice, {"guess_difference": guess})


def check_seeds(subject: Subject) -> Iterator[Line]:
    tokens = 24 if subject.quick else 48
    question = _known_question(subject) if subject.choice.embedded else _STORY
    requests = [subject.request(question, seed, tokens) for seed in (11, 12, 13)]
    first, *others = subject.generate(*requests)
    again, *_ = subject.generate(*requests)
    equal = others.count(first)
    if not equal:
        yield Line(6, "ok", "other seeds give other traces")
    else:
        chance = subject.log_probability(requests[0].prompt_token_ids, first)
        known = equal * chance if chance is not None else (-20.0 if len(first) > 15 else 0.0)
        advice = "The random streams are not independent: results of this engine cannot be trusted."
        state: State = "FAIL" if known < -14 else "warn"
        seen = f"{equal + 1} seeds give the same {len(first)} tokens (probability e^{known:.0f})"
        yield Line(6, state, seen, advice if state == "FAIL" else "The model is nearly certain here.")
    if first == again:
        yield Line(6, "ok", "one seed repeats its trace")
    elif subject.mlx is None:
        yield Line(6, "warn", "one seed does not repeat its trace", "The server gets no seeds or ignores them.")
    else:
        yield Line(6, "FAIL", "one seed does not repeat its trace", "A resumed run would not continue the same traces.")


def check_speed_and_memory(subject: Subject) -> Iterator[Line]:
    from ..run.sync import run_sync

    engine, wanted = subject.mlx, (1, 4) if subject.quick else (1, 4, 16)
    if engine is None:
        speeds = []
        for rows in wanted:
            start = time.monotonic()
            made = subject.generate(*(subject.request(_STORY, 100 * rows + row, 32) for row in range(rows)))
            speeds.append(f"{sum(map(len, made)) / (time.monotonic() - start):,.0f} with {rows}")
        yield Line(7, "ok", f"tokens/s by requests at the same time: {', '.join(speeds)}; memory is the server's")
        return
    context = 64
    numbers = [
        rows
        for rows in wanted
        if rows <= engine.admission.max_rows and engine.admission.fits([context + 64] * (rows - 1), context + 64)
    ]
    profiler = engine.timer()
    reading = min(256, (engine.info.context_length or 256) // 2)
    read_s = run_sync(profiler.read(reading))
    read_s = min(read_s, run_sync(profiler.read(reading)))
    steps = {rows: run_sync(profiler.decode(rows, context, 4)).step_s for rows in numbers}
    speeds = [f"{rows / step:,.0f} with {rows}" for rows, step in steps.items()]
    figures = {"decode": {str(rows): rows / step for rows, step in steps.items()}, "reading": reading / read_s}
    seen = f"decoding tokens/s by rows: {', '.join(speeds)}; reading {reading / read_s:,.0f} tokens/s"
    yield Line(7, "ok", seen, figures=figures)
    yield from _prospect(subject)
    yield from _memory(subject, engine, min(4, max(numbers, default=1)))
    run_sync(profiler.close())


def _prospect(subject: Subject) -> Iterator[Line]:
    """Compare with the bound of an Apple chip, and with published speeds of ZAYA1."""
    from ..backends.mlx.device import chip_name
    from ..backends.mlx.memory import model_of_checkpoint
    from ..predict.expected import Prospect
    from ..predict.published import chip_of

    assert subject.folder is not None
    if (chip := chip_of(chip_name())) is not None:
        prospect = Prospect.of_model(chip, model_of_checkpoint(subject.folder, {}))
        yield Line(7, "ok", f"predicted {'; '.join(prospect.sentences)}", figures={"expected": prospect.to_dict()})


def _memory(subject: Subject, engine: MLXEngine, rows: int) -> Iterator[Line]:
    """Compare weights, caches and the measured peak with the figures that `mrsa plan` computes from the files."""
    from ..backends.mlx.memory import footprint_of_checkpoint
    from ..backends.policy import MemoryBudget
    from ..run.sync import run_sync

    assert subject.folder is not None
    plan = footprint_of_checkpoint(subject.folder, {})
    context = min(300, (engine.info.context_length or 300) // 2)
    profiler = engine.timer()
    caches = run_sync(profiler.cache_bytes(rows, context))
    run_sync(profiler.close())
    for name, planned, measured in (
        ("weights", plan.weight_bytes, engine.admission.footprint.weight_bytes),
        (f"caches of {rows} rows", plan.cache_bytes(rows, context), caches),
    ):
        seen = f"{name}: {size(measured)}, planned {size(planned)} (tolerance {_SHARE:.0%})"
        wrong = abs(planned - measured) > _SHARE * measured
        figures = {"part": name, "planned_bytes": planned, "measured_bytes": measured}
        yield Line(7, "FAIL" if wrong else "ok", seen, _PLAN_ADVICE if wrong else "", figures)
    length, new = context // 2, 8
    text = subject.tokenizer.encode(_PLAIN_TEXT * 5)
    prompts = [[*text[row : row + length]] for row in range(rows)]
    run_sync(engine.free_caches())
    engine.reset_peak_memory()
    from ..backends.base import GenerationRequest

    filters = Sampling(1.0, 0.95, 40)
    subject.generate(
        *(GenerationRequest(f"doctor-{i}", (), tuple(ids), new, i, filters) for i, ids in enumerate(prompts))
    )
    peak, longest = engine.peak_memory_bytes(), length + new
    planned = MemoryBudget(plan, rows, 0).required_bytes(rows, longest)
    wrong = abs(peak - planned) > _SHARE * planned + _BUFFERS
    tolerance = f"{_SHARE:.0%} and {size(_BUFFERS)}"
    seen = f"peak of {rows} rows of {longest} tokens: {size(peak)}, planned {size(planned)} (tolerance {tolerance})"
    figures = {"part": f"peak of {rows} rows", "planned_bytes": planned, "measured_bytes": peak}
    yield Line(7, "FAIL" if wrong else "ok", seen, _PLAN_ADVICE if wrong else "", figures)


_PLAN_ADVICE = "Set --memory-limit-gb below the memory that is free, and report the model: its plan is wrong."


def _known_question(subject: Subject) -> str:
    from .. import reasoner

    if subject.choice.embedded:
        return reasoner.demo_puzzle(3).question
    return "What is 6 times 7? Put the final answer in \\boxed{}."


def check_question(subject: Subject) -> Iterator[Line]:
    from .. import reasoner

    question = _known_question(subject)
    limit = token_limit(subject, 128 if subject.quick else 512)
    base = RSAConfig.embedded() if subject.choice.embedded else RSAConfig(final_tokens=limit)
    traces = 4 if subject.choice.embedded else 1  # the embedded model is right half of the time
    config = base.replace(rounds=0, population=traces, seed=1, final_candidates=None)
    subject.engine.reset_peak_memory()  # and the counters of experts
    result = subject.orchestrator.run(question, config)
    checker = reasoner.answer_checker(question) or (lambda answer: answer.strip().strip("$") == "42")
    if not result.answer:
        more = (
            "without --quick it has more tokens" if subject.quick else "mrsa solve --final-tokens gives it more tokens"
        )
        advice = f"The trace was cut off in its thinking, or has no box; {more}."
        yield Line(
            8, "warn", f"no answer in {count(result.generated_tokens)} tokens: {result.text or 'no text'}", advice
        )
    elif checker(result.answer):
        yield Line(8, "ok", f"the right answer {result.answer} after {count(result.generated_tokens)} tokens")
    else:
        yield Line(
            8, "warn", f"the wrong answer {result.answer}", "A small model may be wrong; a large one should not."
        )


def check_experts(subject: Subject) -> Iterator[Line]:
    from ..run.sync import run_sync

    stats = run_sync(subject.engine.model_stats())
    if stats is None:
        return
    busiest = max(stats["busiest_by_layer"], default=0.0)
    seen = (
        f"{stats['skipped']:.0%} of tokens skipped an expert, the busiest expert has {busiest:.1f} times an even load"
    )
    odd = stats["skipped"] > 0.9 or not math.isfinite(busiest)
    figures = {key: value for key, value in stats.items() if key != "counts"}
    advice = "Compare with the original weights: the router may be damaged." if odd else ""
    yield Line(9, "warn" if odd else "ok", seen, advice, figures)


def check_run(subject: Subject) -> Iterator[Line]:
    from ..audit.verify import verify_file

    tokens = token_limit(subject, 64 if subject.quick else 256)
    base = RSAConfig.embedded()
    if not subject.choice.embedded:
        base = RSAConfig(thinking_tokens=tokens, tail_tokens=tokens // 4, final_tokens=tokens)
    config = base.replace(rounds=1, population=2, aggregation_size=2, final_candidates=1, seed=1)
    with tempfile.TemporaryDirectory(prefix="mrsa-doctor-") as folder:
        trail = Path(folder, "run.jsonl")
        try:
            result = subject.orchestrator.run(_known_question(subject), config, audit_path=trail)
        except ContextLengthError as error:
            yield Line(10, "warn", str(error), "The context is too short for aggregation prompts.")
            return
        report = verify_file(trail, codec=subject.tokenizer)
    seen = f"N=2 C=2 T=1: {count(result.generated_tokens)} tokens in {result.elapsed_s:.1f} s, {report.verdict}"
    figures = {"tokens": result.generated_tokens, "seconds": result.elapsed_s, "verdict": str(report.verdict)}
    if result.warnings:
        yield Line(10, "warn", f"{seen}; warnings: {'; '.join(result.warnings)}", figures=figures)
    else:
        yield Line(10, "ok", seen, figures=figures)


def token_limit(subject: Subject, wanted: int) -> int:
    """Return a limit for traces that leaves enough of a short context for prompts."""
    context = subject.engine.info.context_length
    return wanted if context is None else max(8, min(wanted, context // 8))
