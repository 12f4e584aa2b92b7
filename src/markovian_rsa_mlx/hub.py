"""Download from the Hugging Face hub, and read its local cache without a network.

Heavy imports (huggingface_hub, mlx_lm) happen inside the functions: the command line loads this module for `--help`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from .errors import ConfigError, MarkovianRSAError, ModelError, TaskError

#: Everything that mlx-lm loads of a model.
MODEL_FILES: Final = (
    "*.json",
    "model*.safetensors",
    "*.py",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jsonl",
    "*.jinja",
)
CONFIG_FILES: Final = ("config.json",)
TOKENIZER_FILES: Final = (
    "config.json",
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "*.tiktoken",
)
#: Disk space left free next to a download.
_SPARE_BYTES: Final = 10**9
#: Seconds to wait for the hub's first response. Downloads have their own, longer timeout.
HUB_TIMEOUT_S: Final = 20


def local_folder(model: str | Path) -> Path | None:
    """Return the folder that `model` names, or None if it reads like a hub id.

    Raises `ModelError` for a missing folder.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(f"{str(model)!r} is a file; give the folder that holds config.json and the weights.")
    text = str(model)
    if isinstance(model, Path) or text.startswith((".", "~", "/")) or text.count("/") > 1 or "\\" in text:
        raise ModelError(f"There is no folder {text!r}; check the path, or give a hub id like owner/name.")
    return None


def read_config(path: Path) -> dict[str, Any]:
    """Return the config.json of a model's folder, as mlx-lm reads it. Raises `ModelError`."""
    from mlx_lm.utils import load_config

    try:
        config: dict[str, Any] = load_config(path)
    except FileNotFoundError as error:
        raise ModelError(f"There is no config.json in {str(path)!r}; it is not a model's folder.") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"The config.json in {str(path)!r} cannot be read: {error}.") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"The config.json in {str(path)!r} names no model_type, so its architecture is unknown.")
    return config


def download(model: str, revision: str | None, progress: Callable[[str], None]) -> Path:
    """Return the folder of a hub model in the local cache, downloaded where needed.

    Raises `ModelError` if the model is unknown or gated, if it is not cached and the hub cannot be reached, and if the
    disk is too small.
    """
    from huggingface_hub import constants, errors, snapshot_download, try_to_load_from_cache

    try:
        info = _repository_info(model, revision, dataset=False)
    except _UnreachableError as error:
        return _cached_model(model, revision, error.reason)
    wanted = [file for file in info.siblings or [] if any(fnmatch(file.rfilename, pattern) for pattern in MODEL_FILES)]
    missing = sum(
        file.size or 0
        for file in wanted
        if not isinstance(try_to_load_from_cache(model, file.rfilename, revision=info.sha), str)
    )
    if missing:
        folder = Path(constants.HF_HUB_CACHE)
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if missing + _SPARE_BYTES > free:
            raise ModelError(
                f"{model} needs {missing / 1e9:.1f} GB and {str(folder)!r} has {free / 1e9:.1f} GB free; free some "
                "space, or set HF_HOME to a folder on a larger disk."
            )
        progress(f"Downloading {model} ({missing / 1e9:.1f} GB)")
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(MODEL_FILES)))
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise _refused(model, revision, error, dataset=False) from error
    except Exception as error:
        raise ModelError(
            f"The download of {model} broke off ({cause_of(error)}); run it again to continue it."
        ) from error


def fetch_files(model: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the folder of the local cache that holds these small files of a hub model.

    Downloads them if one of the first two patterns is not cached. Raises `ModelError`.
    """
    from huggingface_hub import HfApi, snapshot_download

    wanted = list(patterns)
    try:
        cached = Path(snapshot_download(model, revision=revision, allow_patterns=wanted, local_files_only=True))
        if all(any(cached.glob(pattern)) for pattern in wanted[:2]):
            return cached
    except Exception:  # not cached: ask the hub
        pass
    try:
        # Fails immediately without a network, where a download would retry.
        HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT_S)
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise ModelError(
            f"{model} is not on this machine, and the hub does not provide its files ({cause_of(error)}); check the "
            "name and the network, or give the folder of a downloaded model."
        ) from error


def dataset_files(
    repo: str, revision: str | None, select: Callable[[list[str]], list[str]]
) -> tuple[list[str], Path | None]:
    """Return the names of a data set's files, and the folder of its cached copy if the hub cannot be reached.

    A cached copy counts only if `select` finds a usable file in it. Raises `TaskError` if the data set is unknown or
    gated, or if it is not cached and the hub cannot be reached, and `ConfigError` if `repo` is not an id.
    """
    from huggingface_hub import snapshot_download

    try:
        return [file.rfilename for file in _repository_info(repo, revision, dataset=True).siblings or []], None
    except _UnreachableError as error:
        reason = error.reason
    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True))
        names = folder_files(folder)
    except Exception:
        names = []
    if not select(names):
        raise TaskError(
            f"The data set {repo} is not on this machine and the hub cannot be reached ({reason}); try again later, or "
            "download it elsewhere and give its file or folder as the task."
        )
    return names, folder


def folder_files(folder: Path) -> list[str]:
    """Return the files below a folder as sorted POSIX paths."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def fetch_dataset_file(repo: str, revision: str | None, file: str) -> Path:
    """Return one file of a data set in the local cache, downloaded where needed. Raises `TaskError`."""
    from huggingface_hub import hf_hub_download

    try:  # by the name of the revision, not its commit: only then can the cache find it without a network
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
    except Exception as error:
        raise TaskError(
            f"The download of {repo} broke off ({cause_of(error)}); run it again to continue it."
        ) from error


def cause_of(error: Exception) -> str:
    """Return the type of an exception and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__


class _UnreachableError(Exception):
    """The hub did not answer. `reason` describes the original exception."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _repository_info(repo: str, revision: str | None, *, dataset: bool) -> Any:
    """Return the hub's description of a model or a data set.

    Raises `ModelError` or `TaskError` if the hub refuses, `ConfigError` if the id of a data set is invalid, and
    `_UnreachableError` if it does not answer.
    """
    from huggingface_hub import HfApi, errors

    kind = "dataset" if dataset else "model"
    try:
        return HfApi().repo_info(
            repo, revision=revision, repo_type=kind, timeout=HUB_TIMEOUT_S, files_metadata=not dataset
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError) as error:
        raise _refused(repo, revision, error, dataset=dataset) from error
    except errors.HFValidationError as error:
        if dataset:
            raise ConfigError(f"{repo!r} is not the id of a data set like owner/name.") from error
        raise ModelError(f"{repo!r} is neither a folder nor a hub id like owner/name.") from error
    except Exception as error:  # a missing network has many exception types, depending on the HTTP library
        raise _UnreachableError(cause_of(error)) from error


def _refused(repo: str, revision: str | None, error: Exception, *, dataset: bool) -> MarkovianRSAError:
    from huggingface_hub import errors

    noun, kind, url = ("data set", TaskError, "datasets/") if dataset else ("model", ModelError, "")
    address = f"https://huggingface.co/{url}{repo}"
    if isinstance(error, errors.GatedRepoError):  # a kind of RepositoryNotFoundError, so it goes first
        return kind(f"The {noun} {repo} is gated; accept its terms at {address} and log in with `hf auth login`.")
    if isinstance(error, errors.RevisionNotFoundError):
        return kind(f"The {noun} {repo} has no revision {revision!r}; see {address}/commits.")
    return kind(
        f"There is no {noun} {repo!r} on the hub, or it is private; check the name, or log in with `hf auth login`."
    )


def _cached_model(model: str, revision: str | None, reason: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        path = Path(
            snapshot_download(model, revision=revision, allow_patterns=list(MODEL_FILES), local_files_only=True)
        )
    except Exception as error:
        raise ModelError(
            f"{model} is not on this machine and the hub cannot be reached ({reason}); "
            "check the network, or give the folder of a downloaded model."
        ) from error
    if not (path / "config.json").exists() or not any(path.glob("model*.safetensors")):
        raise ModelError(
            f"{model} is only partly on this machine and the hub cannot be reached ({reason}); "
            "run it again with a network to finish the download."
        )
    return path
