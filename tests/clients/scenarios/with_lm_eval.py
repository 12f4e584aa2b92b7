"""lm-eval with its models local-completions and local-chat-completions, on a task of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from steps import MODEL, PUZZLE, RUN, SERVER, main, step

TASK = """
task: puzzle
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/puzzles.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 60, temperature: 0.8}
metric_list: [{metric: exact_match}]
"""


def evaluate(kind: str, path: str, model: str, *options: str, arguments: str = "") -> None:
    folder = Path.cwd() / "lm_eval"
    folder.mkdir(exist_ok=True)
    (folder / "puzzles.jsonl").write_text(json.dumps({"question": PUZZLE, "answer": "3"}) + "\n", encoding="utf-8")
    (folder / "puzzle.yaml").write_text(TASK.replace("FOLDER", str(folder)), encoding="utf-8")
    arguments = (
        f"model={model},base_url={SERVER}{path},tokenizer_backend=None,tokenized_requests=False,num_concurrent=2"
    )
    command = ["lm_eval", "run", "--model", kind, "--model_args", arguments, "--tasks", "puzzle"]
    command += ["--include_path", str(folder), "--output_path", str(folder / kind), "--log_samples", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]
    (samples,) = (folder / kind).rglob("samples_*.jsonl")
    (reply,) = json.loads(samples.read_text(encoding="utf-8"))["resps"][0]
    assert reply.strip(), done.stderr[-3_000:]


@step("local-chat-completions")
def chats() -> None:
    evaluate("local-chat-completions", "/v1/chat/completions", RUN, "--apply_chat_template")


@step("local-completions")
def texts() -> None:
    evaluate(
        "local-completions", "/v1/completions", MODEL, arguments=",tokenizer_backend=None,tokenized_requests=False"
    )


main()
