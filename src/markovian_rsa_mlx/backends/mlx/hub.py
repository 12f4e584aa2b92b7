"""Models from the Hugging Face hub: what is missing is downloaded, what is cached serves without a network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, snapshot_download, try_to_load_from_cache
from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

from ...errors import ModelError

#: Left free on the disk beside the download.
_SPARE_BYTES = 10**9


def fetch(model: str, revision: str | None, say: Callable[[str], None]) -> Path:
    """The folder of a hub model in the local cache, downloaded where needed.

    Raises `ModelError`: unknown or gated, no network and not cached, not enough disk.
    """
    try:
        missing = missing_bytes(model, revision)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError) as error:
        raise _refused(model, revision, error) from error
    except errors.HFValidationError as error:
        raise ModelError(f"{model!r} is neither a folder nor a hub id like owner/name.") from error
    except Exception as error:  # no network shows itself in many kinds, by the HTTP library's taste
        return _cached(model, revision, error)
    _check_disk(model, missing)
    if missing:
        say(f"Downloading {model} ({missing / 1e9:.1f} GB)")
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=DEFAULT_ALLOW_PATTERNS))
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        raise _refused(model, revision, error) from error
    except Exception as error:
        raise ModelError(f"The download of {model} broke off ({_cause(error)}); run it again to go on.") from error


def missing_bytes(model: str, revision: str | None) -> int:
    """Bytes of the model's files that are not in the cache yet. Asks the hub."""
    info = HfApi().model_info(model, revision=revision, files_metadata=True, timeout=20)
    wanted = [
        file
        for file in info.siblings or []
        if any(fnmatch(file.rfilename, pattern) for pattern in DEFAULT_ALLOW_PATTERNS)
    ]
    absent = [
        file for file in wanted if not isinstance(try_to_load_from_cache(model, file.rfilename, revision=info.sha), str)
    ]
    return sum(file.size or 0 for file in absent)


def _check_disk(model: str, missing: int) -> None:
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if missing and missing + _SPARE_BYTES > free:
        raise ModelError(
            f"{model} needs {missing / 1e9:.1f} GB and {str(folder)!r} has {free / 1e9:.1f} GB free; free some space, "
            "or set HF_HOME to a folder on a larger disk."
        )


def _cached(model: str, revision: str | None, cause: Exception) -> Path:
    try:
        folder = snapshot_download(
            model, revision=revision, allow_patterns=DEFAULT_ALLOW_PATTERNS, local_files_only=True
        )
    except Exception:
        raise ModelError(
            f"{model} is not on this machine and the hub cannot be reached ({_cause(cause)}); "
            "check the network, or give the folder of a downloaded model."
        ) from cause
    path = Path(folder)
    if not (path / "config.json").exists() or not any(path.glob("model*.safetensors")):
        raise ModelError(
            f"{model} is only partly on this machine and the hub cannot be reached ({_cause(cause)}); "
            "run it again with a network to finish the download."
        ) from cause
    return path


def _refused(model: str, revision: str | None, error: Exception) -> ModelError:
    if isinstance(error, errors.GatedRepoError):  # a kind of RepositoryNotFoundError, so it goes first
        return ModelError(
            f"{model} is gated; accept its terms at https://huggingface.co/{model} and log in with `hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{model} has no revision {revision!r}; see https://huggingface.co/{model}/commits.")
    return ModelError(
        f"There is no model {model!r} on the hub, or it is private; check the name, or log in with `hf auth login`."
    )


def _cause(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
