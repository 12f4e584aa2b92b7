"""Download from the Hugging Face hub, and read its local cache without a network.

Heavy imports (huggingface_hub, mlx_lm) happen inside the functions: the command line loads this module for `--help`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final, NamedTuple

from .errors import ConfigError, MarkovianRSAError, ModelError, TaskError
from .formatting import size
from .network import hub_client, names_network, proxy_for
from .redact import protect

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
#: The files whose content `backends.tokenizers.files_digest` identifies.
VOCABULARY_FILES: Final = ("tokenizer*", "*.jinja", "special_tokens_map.json", "vocab*", "merges.txt", "*.tiktoken")
#: Where some vision-language models keep their only chat template. Transformers' tokenizers do not read it.
PROCESSOR_TEMPLATE: Final = "chat_template.json"
#: Everything that a tokenizer is loaded from. `generation_config.json` may name more EOS ids than `config.json`.
TOKENIZER_FILES: Final = ("config.json", *VOCABULARY_FILES, PROCESSOR_TEMPLATE, "generation_config.json")
#: The files of an adapter, as mlx-lm writes them.
ADAPTER_FILES: Final = ("adapter_config.json", "adapters.safetensors")
#: The files of a model that shape what an engine computes.
_DIGESTED_FILES: Final = (
    *TOKENIZER_FILES,
    "chat_template*",
    "*.model",
    "model*.safetensors",
    "*.gguf",
)
#: Files up to this size are read completely; of larger ones the start (with the list of tensors) and samples.
_WHOLE_BYTES, _HEAD_BYTES = 16 * 2**20, 2**20
_SAMPLES, _SAMPLE_BYTES = 512, 4096
#: Disk space left free next to a download.
_SPARE_BYTES: Final = 10**9
#: Seconds to wait for the hub's first response. Downloads have their own, longer timeout.
HUB_TIMEOUT_S: Final = 20
#: The text between the parts of a digest of a model with an adapter.
_WITH: Final = " with "


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


def check_revision(name: str, revision: str | None, folder: Path | None) -> None:
    """Raise `ConfigError` for the revision of a model that is read from a local folder, where it has no effect."""
    if revision is not None and folder is not None:
        raise ConfigError(
            f"revision is {revision!r}, but {name} is read from a folder on this machine; leave it out, or name a "
            "model of the hub."
        )


def read_config(path: Path) -> dict[str, Any]:
    """Return the config.json of a model's folder, as mlx-lm reads it. Raises `ModelError`."""
    from mlx_lm.utils import load_config

    try:
        config: dict[str, Any] = load_config(path)
    except FileNotFoundError as error:
        raise ModelError(f"There is no config.json in {str(path)!r}; it is not a model's folder.") from error
    except (ValueError, RecursionError, OSError) as error:
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
                f"{model} needs {size(missing)} and {str(folder)!r} has {size(free)} free; free some "
                "space, or set HF_HOME to a folder on a larger disk."
            )
        proxy = proxy_for(constants.ENDPOINT)
        progress(f"Downloading {model} ({size(missing)}){f' through {proxy}' if proxy else ''}")
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
    from huggingface_hub import snapshot_download

    wanted = list(patterns)
    cached = _cached_snapshot(model, revision, wanted)
    if cached is not None:
        return cached
    try:
        # Fails immediately without a network, where a download would retry.
        _repository_info(model, revision, dataset=False)
    except _UnreachableError as error:
        raise _unreachable(model, error.reason) from error
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise ModelError(
            f"The download of {model} broke off ({cause_of(error)}); run it again to continue it."
        ) from error


def weight_headers(model: str, revision: str | None) -> dict[str, bytes]:
    """Return the safetensors headers of a hub model's weight files by file name, or none if the hub gives none."""
    from huggingface_hub import HfApi

    _use_environment()
    try:
        found = HfApi().get_safetensors_metadata(model, revision=revision, timeout=HUB_TIMEOUT_S)
        return {
            file: json.dumps(
                {
                    name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
                    for name, tensor in header.tensors.items()
                }
            ).encode()
            for file, header in found.files_metadata.items()
        }
    except Exception:  # no network, or no safetensors files
        return {}


class CachedModel(NamedTuple):
    """A model in the hub's local cache: its id, the folder of its latest revision, and its size in bytes."""

    model_id: str
    folder: Path
    size_bytes: int


def model_digest(folder: Path) -> str:
    """Identify the content of a model's folder quickly, in 16 hex digits: small files completely, weights by samples.

    A copied folder has the same digest; a converted or retrained one has another, whatever its name and dates. Raises
    `ModelError` if a file cannot be read.
    """
    return _digest(folder, _DIGESTED_FILES)


def sampled_adapter_digest(folder: Path) -> str:
    """Identify the content of the folder of a LoRA adapter in the same way."""
    return _digest(folder, ADAPTER_FILES)


def with_adapter(content: str, adapter: Path | None) -> str:
    """Return the digest of a model whose traces all use an adapter, from that of the model without it."""
    return content if adapter is None else f"{content}{_WITH}{sampled_adapter_digest(adapter)}"


def digest_parts(digest: str) -> tuple[str, str]:
    """Return the two parts of a digest `with_adapter`: the model's, and the adapter's or ""."""
    content, _, adapter = digest.partition(_WITH)
    return content, adapter


def _digest(folder: Path, patterns: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    try:
        for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
            size = path.stat().st_size
            digest.update(f"{path.name}|{size}|".encode(errors="surrogateescape"))
            with path.open("rb") as file:
                if size <= _WHOLE_BYTES:
                    digest.update(file.read())
                    continue
                digest.update(file.read(_HEAD_BYTES))
                for number in range(1, _SAMPLES + 1):  # the last sample ends with the file
                    file.seek((size - _SAMPLE_BYTES) * number // _SAMPLES)
                    digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise ModelError(
            f"A file in {str(folder)!r} cannot be read: {error.strerror}; check its permissions."
        ) from error
    return digest.hexdigest()[:16]


def cached_models() -> list[CachedModel]:
    """Return the models in the hub's local cache by id. Uses no network."""
    from huggingface_hub import errors, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except errors.CacheNotFound:
        return []
    found = []
    for repository in repositories:
        if repository.repo_type == "model" and repository.revisions:
            latest = max(repository.revisions, key=lambda revision: ("main" in revision.refs, revision.last_modified))
            found.append(CachedModel(repository.repo_id, latest.snapshot_path, repository.size_on_disk))
    return sorted(found)


def cached_folder(model: str, patterns: Sequence[str], revision: str | None = None) -> Path | None:
    """Return the folder of a model that is on this machine, or None. Uses no network.

    `model` is a folder, or a hub id whose first two patterns are cached.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    return _cached_snapshot(model, revision, list(patterns)) if model.count("/") == 1 else None


def _cached_snapshot(model: str, revision: str | None, patterns: list[str]) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        cached = Path(snapshot_download(model, revision=revision, allow_patterns=patterns, local_files_only=True))
    except Exception:  # an id that is invalid or not cached
        return None
    return cached if all(any(cached.glob(pattern)) for pattern in patterns[:2]) else None


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
    """Return the type of an exception and the first line of its message, or all of it if it is for the user."""
    if isinstance(error, MarkovianRSAError):
        return str(error).rstrip(".")
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__


@functools.cache
def _use_environment() -> None:
    """Let the hub's library use proxies and certificates as upstream servers do, and strike out the hub's token."""
    from huggingface_hub import get_token, set_client_factory

    protect(get_token())
    if names_network():
        set_client_factory(hub_client)


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

    _use_environment()
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


def _unreachable(model: str, reason: str) -> ModelError:
    return ModelError(
        f"{model} is not on this machine and the hub cannot be reached ({reason}); "
        "check the network, or give the folder of a downloaded model."
    )


def _cached_model(model: str, revision: str | None, reason: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        path = Path(
            snapshot_download(model, revision=revision, allow_patterns=list(MODEL_FILES), local_files_only=True)
        )
    except Exception as error:
        raise _unreachable(model, reason) from error
    if not (path / "config.json").exists() or not any(path.glob("model*.safetensors")):
        raise ModelError(
            f"{model} is only partly on this machine and the hub cannot be reached ({reason}); "
            "run it again with a network to finish the download."
        )
    return path
