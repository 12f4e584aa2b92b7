"""Choose the profile of a server without --profile: the largest one that answers in ten minutes on this machine.

The speeds are measured once, in less than ten seconds, and kept in the user's cache for the next start of the same
model on the same device with the same settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import platformdirs

from ..config import PROFILES, RSAConfig
from ..formatting import duration
from ..json_strict import loads
from . import length_data
from .lengths import Lengths
from .measure import READS, Speeds
from .predict import Prediction, ProfileOnEngine, candidate, measure_for, recommend

if TYPE_CHECKING:
    from ..backends.mlx import MLXEngine

#: Seconds for one question, at most.
TIME_S = 600.0
#: The smallest profile, for engines that cannot be measured, and where no profile is fast enough.
SMALLEST: Final = "default-16gb"
#: Profiles that may be chosen without being named. apex-xhigh takes hours on many machines.
ELIGIBLE: Final = tuple(name for name in PROFILES if name not in ("embedded", "apex-xhigh"))
#: Seconds to measure, and seconds for the first 16 tokens of a prompt above which no profile can be fast enough: with a
#: fifth of it per step, default-16gb alone takes hours.
_MEASURE_S, _SLOW_S = 6.0, 0.5
#: Earlier runs whose traces' lengths are taken into account. More would delay the start.
_RUNS = 20


class DefaultProfile(NamedTuple):
    """The name of a profile and the reason for it, as the rest of a sentence.

    Without `suits`, its runs would be refused for this reason. `settings` are lower ones with which they would not be,
    if any are known.
    """

    name: str
    reason: str
    suits: bool = True
    settings: Mapping[str, int] = MappingProxyType({})


async def choose_profile(
    engine: MLXEngine, configs: Mapping[str, RSAConfig], *, question_tokens: int, report: Callable[[str], None]
) -> DefaultProfile:
    """Return the largest of these profiles that answers a question in TIME_S on this engine in nine of ten runs.

    If there is none, return the quickest, and SMALLEST if none runs here. `report` receives a line before a
    measurement. Nothing else may use the engine meanwhile.
    """
    lengths = length_data.for_model(engine.info.model_id, _RUNS)
    tokens = question_tokens if lengths.prompt_tokens is None else None
    all_of_them = [
        candidate(name, config, engine, question_tokens=tokens, prompt_tokens=lengths.prompt_tokens)
        for name, config in configs.items()
    ]
    usable = [each for each in all_of_them if not each.refused]
    if not usable:
        return _unsuitable(all_of_them)
    if len(usable) == 1:
        return DefaultProfile(usable[0].name, "the only one that fits the model's context and memory")
    speeds = await _speeds(engine, usable, lengths.lengths, report)
    if speeds is None:
        return DefaultProfile(SMALLEST, "the smallest, because this machine is slow with this model")
    costs = speeds.costs()
    predictions = [each.predict(lengths.lengths, costs) for each in usable]
    if (chosen := recommend(predictions, TIME_S)) is not None:
        return DefaultProfile(
            chosen.profile, f"the largest that answers in ten minutes; a question takes {_time(chosen)}"
        )
    runnable = [each for each in predictions if not each.refused]
    if not runnable:
        return DefaultProfile(SMALLEST, predictions[0].refused, suits=False)
    quickest = min(runnable, key=lambda each: each.seconds_p90)
    return DefaultProfile(quickest.profile, f"the quickest; a question takes {_time(quickest)}")


def _unsuitable(candidates: Sequence[ProfileOnEngine]) -> DefaultProfile:
    """Return SMALLEST with the reason why it does not suit, and settings with which it would."""
    smallest = next((each for each in candidates if each.name == SMALLEST), candidates[0])
    settings = smallest.too_long.settings if smallest.too_long is not None else {}
    return DefaultProfile(smallest.name, smallest.refused, suits=False, settings=settings)


def _time(prediction: Prediction) -> str:
    return f"about {duration(prediction.seconds)}, by a prediction as of mrsa tune"


async def _speeds(
    engine: MLXEngine, usable: Sequence[ProfileOnEngine], lengths: Lengths, report: Callable[[str], None]
) -> Speeds | None:
    """Return the speeds from the cache, or measure them. None for an engine that is too slow to measure."""
    wanted = json.dumps([engine.speed_facts(), [[each.name, each.longest] for each in usable]], sort_keys=True)
    path = cache_folder() / f"{hashlib.sha256(wanted.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = loads(path.read_text(encoding="utf-8"))["speeds"]
        return None if values is None else Speeds.from_dict(values)
    report("Measuring the speed of this machine, once for this model ...")
    speeds = None if await _is_slow(engine) else await measure_for(engine, usable, lengths, _MEASURE_S)
    with contextlib.suppress(OSError):  # without the cache, the next start measures again
        _write(path, json.dumps({"speeds": None if speeds is None else speeds.to_dict()}))
    return speeds


async def _is_slow(engine: MLXEngine) -> bool:
    profiler = engine.timer()
    try:
        await profiler.read(READS[0])  # compiles and allocates
        return await profiler.read(READS[0]) > _SLOW_S
    finally:
        await profiler.close()


def cache_folder() -> Path:
    """Return the folder of measured speeds."""
    return platformdirs.user_cache_path("markovian-rsa-mlx", appauthor=False) / "speeds"


def _write(path: Path, text: str) -> None:
    """Write a file so that readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, draft = tempfile.mkstemp(dir=path.parent, prefix=".speeds.")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
