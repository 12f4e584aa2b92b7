"""Forge audit files consistently: change one fact, and derive everything that follows from it again.

The forger knows the format, the lineage and the tokenizer. A change of the ids and the text of a trace
together, with all that follows, cannot be distinguished from a run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.method.answers import equal_text, find_answer
from markovian_rsa_mlx.method.lineage import Lineage, TraceKey, trace_seed
from markovian_rsa_mlx.method.prompts import (
    QUOTE,
    ChatFrame,
    PromptBuilder,
    PromptTemplate,
    Segments,
    chat_frame,
    framed,
    static_segments,
)
from markovian_rsa_mlx.method.selection import Candidate, choose, vote
from markovian_rsa_mlx.method.tails import Tail, parse_trace, take_tail
from markovian_rsa_mlx.tokenizer import ChatMessage, Tokenizer

Lines = list[dict[str, Any]]


class Forger:
    """The lines of a finished run with `carry` "tail" and no final aggregation, and the means to derive them again."""

    def __init__(self, lines: Lines, tokenizer: Tokenizer) -> None:
        self.lines, self.tokenizer = copy.deepcopy(lines), tokenizer
        self.start, self.setup = self.lines[0], self.lines[1]

    def find(self, event: str, trace_id: str | None = None) -> dict[str, Any]:
        """Return the first line of an event, of a trace if it is given."""
        return next(x for x in self.lines if x["event"] == event and trace_id in (None, x.get("trace_id")))

    def all(self, event: str) -> Lines:
        return [line for line in self.lines if line["event"] == event]

    @property
    def config(self) -> RSAConfig:
        return RSAConfig.from_mapping(self.start["config"])

    @property
    def finals(self) -> list[str]:
        """The final candidates, in index order."""
        return [str(key) for key in Lineage.of(self.config, self.setup["seed"]).finals]

    def ask(self, question: str, *, keep_ids: bool = False) -> None:
        """Change the question, and derive the static texts and all prompts again. `keep_ids` leaves their ids."""
        setup, encode = self.setup, self.tokenizer.encode
        before = copy.deepcopy(setup)
        self.start["prompt"] = setup["messages"][-1]["content"] = question
        messages = [ChatMessage(role=m["role"], content=m["content"]) for m in setup["messages"]]
        frame = chat_frame(self.tokenizer, messages, enable_thinking=self.config.enable_thinking)
        setup["prompt_text"] = self.tokenizer.render_chat(messages, self.config.enable_thinking)
        setup["prompt_token_ids"] = encode(setup["prompt_text"])
        template = PromptTemplate(setup["template_source"], setup["template_name"])
        setup["segments"] = [
            framed(static_segments(template, question, self.config.carry, count + 1), frame)
            for count in range(len(setup["segments"]))
        ]
        setup["segment_token_ids"] = [[encode(piece) for piece in pieces] for pieces in setup["segments"]]
        if keep_ids:
            setup |= {name: before[name] for name in ("prompt_token_ids", "segment_token_ids")}
        self.derive_prompts()

    def reseed(self, seed: int) -> None:
        """Change the run's seed and those of all attempts."""
        self.start["config"]["seed"] = self.setup["seed"] = seed
        for line in self.all("generation_start"):
            line["seed"] = trace_seed(seed, TraceKey.parse(line["trace_id"]))

    def write(self, trace_id: str, text: str, ids: Sequence[int] | None = None) -> None:
        """Change the text of a trace (with these ids), and derive its count and tail and all prompts again."""
        complete = self.find("trace_complete", trace_id)
        complete["text"] = text
        if ids is not None:
            complete |= {"token_ids": list(ids), "generated_tokens": len(ids)}
            self.derive_tails()
        else:
            self.derive_tails(texts_only=True)
        self.derive_prompts()
        self.derive_end()

    def derive_tails(self, *, texts_only: bool = False) -> None:
        """Cut all tails again: as texts only, for ids that do not match them."""
        marker = self.setup["end_of_thinking_texts"][0]
        for line in self.all("tail_extracted"):
            complete = self.find("trace_complete", line["trace_id"])
            thinking = parse_trace(complete["token_ids"], self.setup["end_of_thinking"]).thinking_ids
            tail = take_tail(thinking, self.config.tail_limit, self.setup["control_token_ids"], self.tokenizer.decode)
            line |= {"tail_token_ids": list(tail.token_ids), "tail_tokens": len(tail.token_ids), "tail_text": tail.text}
            if texts_only:
                line["tail_text"] = complete["text"].split(marker)[0][-len(tail.text) :]

    def derive_prompts(self) -> None:
        """Build all aggregation prompts again, and the counts of their tokens."""
        setup = self.setup
        segments = Segments(setup["segments"], setup["segment_token_ids"], self.tokenizer.encode(QUOTE))
        frame = ChatFrame(setup["chat_prefix"], setup["chat_suffix"])
        builder = PromptBuilder(self.tokenizer, segments, frame)
        for line in self.all("aggregation_prompt"):
            read = [self.find("tail_extracted", trace_id) for trace_id in line["selected_tail_trace_ids"]]
            prompt = builder.build([Tail(tuple(tail["tail_token_ids"]), tail["tail_text"]) for tail in read])
            line |= {"prompt_text": prompt.text, "prompt_token_ids": list(prompt.token_ids)}
        for line in self.all("generation_start"):
            ids = (
                self.find("aggregation_prompt", line["trace_id"])["prompt_token_ids"]
                if line["round"]
                else setup["prompt_token_ids"]
            )
            line["prompt_token_count"] = len(ids)

    def derive_end(self) -> None:
        """Derive answers, vote, choice, final text and total again from the texts."""
        selection, final, end = self.find("selection"), self.find("final"), self.find("run_end")
        texts = {line["trace_id"]: self.answer_text(line["text"]) for line in self.all("trace_complete")}
        kind, rule = self.config.answer_kind, self.config.answer_selection
        candidates = [Candidate(t, find_answer(texts[t], kind).text) for t in selection["candidate_trace_ids"]]
        chosen, votes = choose(rule, candidates, aggregated=None, equivalent=equal_text)
        selection |= {
            "answers": [candidate.answer for candidate in candidates],
            "classes": [[member.trace_id for member in members] for members in votes.classes],
            "tally": list(votes.tally),
            "tie": votes.tie,
            "chosen_trace_id": chosen.trace_id,
            "answer": chosen.answer,
        }
        first = [Candidate(t, find_answer(texts[t], kind).text) for t in sorted(texts) if t.startswith("r0-")]
        baseline = vote(first, equal_text)
        answer = baseline.winner.answer if baseline.winner else ""
        selection["round_zero"] = {
            "traces": len(first), "answer": answer, "votes": max(baseline.tally, default=0)
        }  # fmt: skip
        final |= {"final_trace_id": chosen.trace_id, "final_text": texts[chosen.trace_id].strip()}
        end["total_generated_tokens"] = sum(
            line["generated_tokens"] for line in [*self.all("trace_complete"), *self.all("summary_complete")]
        )

    def answer_text(self, text: str) -> str:
        """Return the text after the thinking."""
        return text.partition(self.setup["end_of_thinking_texts"][0])[2]


def rewrite_answer(forger: Forger) -> None:
    """Let the winner's text give another answer."""
    trace_id = forger.find("final")["final_trace_id"]
    text = forger.find("trace_complete", trace_id)["text"]
    marker = forger.setup["end_of_thinking_texts"][0]
    forger.write(trace_id, text.split(marker)[0] + marker + r"\boxed{999}")


def rewrite_every_text(forger: Forger) -> None:
    """Forge the same change in every trace."""
    for line in forger.all("trace_complete"):
        line["text"] = line["text"].replace("1", "2")
    forger.derive_tails(texts_only=True)
    forger.derive_prompts()
    forger.derive_end()


def change_question(forger: Forger) -> None:
    """Ask another question, and derive the texts and ids of all prompts."""
    forger.ask(forger.start["prompt"].replace("1", "2", 1))


def change_question_in_texts(forger: Forger) -> None:
    """Ask another question in all texts, and leave the ids."""
    forger.ask(forger.start["prompt"].replace("1", "2", 1), keep_ids=True)


def change_seed(forger: Forger) -> None:
    """Claim another seed, and derive the seeds of all traces from it. The parents stay as they were."""
    forger.reseed(forger.setup["seed"] + 1)


def swap_parents(forger: Forger) -> None:
    """Let a trace read its tails in another order."""
    line = forger.all("aggregation_prompt")[0]
    line["selected_tail_trace_ids"].reverse()
    start = forger.find("generation_start", line["trace_id"])
    start["parent_trace_ids"] = list(line["selected_tail_trace_ids"])
    forger.derive_prompts()


def shift_tails(forger: Forger) -> None:
    """Carry the ids before the last one."""
    for line in forger.all("tail_extracted"):
        ids = line["tail_token_ids"][:-1]
        line |= {"tail_token_ids": ids, "tail_text": forger.tokenizer.decode(ids), "tail_tokens": len(ids)}
    forger.derive_prompts()


def change_votes(forger: Forger) -> None:
    """Claim another vote over round 0."""
    forger.find("selection")["round_zero"]["votes"] += 1


def claim_fewer_tokens(forger: Forger) -> None:
    """Take the last token of a trace, its text and all counts away."""
    complete = forger.all("trace_complete")[0]
    ids = complete["token_ids"][:-1]
    complete["finish_reason"] = "max_tokens"
    forger.write(complete["trace_id"], forger.tokenizer.decode(ids), ids)


def raise_budget(forger: Forger) -> None:
    """Claim that the traces were allowed more tokens."""
    for name in ("thinking_tokens", "final_tokens"):
        forger.start["config"][name] += 10
    for line in forger.all("generation_start"):
        line["max_tokens"] += 10


def claim_limits(forger: Forger) -> None:
    """Claim a budget that the run exceeded."""
    forger.start["config"]["token_budget"] = forger.find("run_end")["total_generated_tokens"] // 2


def claim_concurrency(forger: Forger) -> None:
    """Claim that one trace ran at a time."""
    forger.start["config"]["concurrency"] = 1


def shrink_context(forger: Forger) -> None:
    """Claim a context that the prompts do not fit into."""
    forger.setup["context_length"] = 40


def stop_clocks(forger: Forger) -> None:
    """Remove all clocks."""
    forger.lines = [line for line in forger.lines if line["event"] != "trace_clock"]


def stretch_a_trace(forger: Forger) -> None:
    """Claim that a trace took an hour."""
    forger.all("trace_complete")[0]["elapsed_s"] += 3600


def invent_an_error(forger: Forger) -> None:
    """Claim that a finished trace failed."""
    index = forger.lines.index(forger.all("trace_complete")[0])
    error = {"event": "error", "run_id": forger.start["run_id"], "stage": "generation"}
    trace_id = forger.lines[index]["trace_id"]
    forger.lines.insert(index + 1, {**error, "message": f"{trace_id} failed: so it goes", "recoverable": True})


def use_ids_beyond_the_vocabulary(forger: Forger) -> None:
    """Put an id that no token has into a trace, with everything that follows."""
    complete = forger.all("trace_complete")[0]
    ids = [10**6, *complete["token_ids"][1:]]
    forger.write(complete["trace_id"], forger.tokenizer.decode(ids), ids)


def use_ids_together(forger: Forger) -> None:
    """Change an id of a trace, its text and all that follows: nothing in the file shows it."""
    complete = forger.all("trace_complete")[0]
    ids = [complete["token_ids"][1], *complete["token_ids"][1:]]
    forger.write(complete["trace_id"], forger.tokenizer.decode(ids), ids)


#: Forgeries that change a derivable fact.
FORGERIES: list[Callable[[Forger], None]] = [
    rewrite_answer, rewrite_every_text, change_question_in_texts, swap_parents, shift_tails, change_votes,
    claim_fewer_tokens, claim_limits, claim_concurrency, shrink_context, stop_clocks, stretch_a_trace, invent_an_error,
    use_ids_beyond_the_vocabulary, raise_budget,
]  # fmt: skip
#: Forgeries that only generating again can find.
UNDETECTABLE: list[Callable[[Forger], None]] = [use_ids_together, change_question]
