"""A worker process for tests: it returns each line, sleeps on `sleep`, and ends on `exit`."""

from __future__ import annotations

import sys
import time

from markovian_rsa_mlx.subprocess_worker import claim_stdout, serve


def answer(line: bytes) -> bytes:
    print("not part of a reply")
    text = line.rstrip(b"\n")
    if text == b"sleep":
        time.sleep(60)
    if text == b"exit":
        sys.exit(3)
    return text + b"|" + " ".join(sys.argv[1:]).encode()


if __name__ == "__main__":
    serve(answer, sys.stdin.buffer, claim_stdout())
