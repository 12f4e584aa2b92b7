"""Single small files of a hub model, for commands that need no weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ModelError

CONFIG_FILES = ("config.json",)
TOKENIZER_FILES = (
    "config.json",
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "*.tiktoken",
)


def fetch_files(model: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder of the local cache that holds these files; downloads them where the first two are not there.

    Raises `ModelError`.
    """
    from huggingface_hub import HfApi, snapshot_download

    wanted = list(patterns)
    try:
        cached = Path(snapshot_download(model, revision=revision, allow_patterns=wanted, local_files_only=True))
        if all(any(cached.glob(pattern)) for pattern in wanted[:2]):
            return cached
    except Exception:  # not cached; the hub is asked next
        pass
    try:
        HfApi().model_info(model, revision=revision, timeout=20)  # fails at once without a network; downloads retry
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except Exception as error:  # no network shows itself in many kinds, by the HTTP library's taste
        cause = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise ModelError(
            f"{model} is not on this machine, and its files cannot be had from the hub ({type(error).__name__}: "
            f"{cause}); check the name and the network, or give the folder of a downloaded model."
        ) from error
