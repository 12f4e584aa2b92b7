"""Speeds of one trace of ZAYA1-8B that others have published, and the memory bandwidth of the Macs they used.

A decode step reads the weights that a token uses once. The bandwidth divided by these bytes bounds the speed. The
published speeds show which share of the bound is reached.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: GB/s of Apple's chips by name, of the slowest and of the fastest variant (Apple's technical specifications).
CHIPS: dict[str, tuple[float, float]] = {
    "M1": (68, 68), "M1 Pro": (200, 200), "M1 Max": (400, 400), "M1 Ultra": (800, 800),
    "M2": (100, 100), "M2 Pro": (200, 200), "M2 Max": (400, 400), "M2 Ultra": (800, 800),
    "M3": (100, 100), "M3 Pro": (150, 150), "M3 Max": (300, 400), "M3 Ultra": (819, 819),
    "M4": (120, 120), "M4 Pro": (273, 273), "M4 Max": (410, 546), "M5": (153, 153),
}  # fmt: skip
#: Prompt tokens that are read in the time of one decoded token: 495 against 55.6 tokens/s in the report on the M3 Max.
READING_FACTOR = 9.0


@dataclass(frozen=True)
class SpeedReport:
    """One published speed. `read_bytes` are the weights that its checkpoint reads for a token (see `docs/zaya.md`)."""

    chip: str
    bandwidth_gb_s: float
    weights: str
    read_bytes: float
    tokens_s: float
    source: str

    @property
    def share(self) -> float:
        """The share of the bound that was reached."""
        return self.tokens_s * self.read_bytes / (1e9 * self.bandwidth_gb_s)


_MLX_LM = "github.com/ml-explore/mlx-lm/pull/1261 (MacBook Air, 24 GB)"
_MLX_VLM = "github.com/Blaizzy/mlx-vlm/pull/1159 (96 GB; the language part of ZAYA1-VL-8B)"
_VMLX = "the evidence pass of github.com/osaurus-ai/vmlx-swift-lm at b9da180 (128 GB; affine with 4 bits)"
_UNNAMED = "users' reports without a public address"
REPORTS = (
    SpeedReport("M4", 120, "4-bit", 0.785e9, 30.0, _MLX_LM),
    SpeedReport("M4", 120, "8-bit", 1.409e9, 20.0, _MLX_LM),
    SpeedReport("M4 Max", 546, "MXFP4", 1.11e9, 71.8, _VMLX),
    SpeedReport("M4 Pro", 273, "MXFP4", 1.11e9, 42.0, _UNNAMED),
    SpeedReport("M3 Max", 300, "bfloat16", 2.581e9, 55.6, _MLX_VLM),
    SpeedReport("M4 Pro", 273, "bfloat16", 2.581e9, 7.0, _UNNAMED),
)


def expected_shares(*, quantized: bool) -> tuple[float, float]:
    """Return the smallest and the largest share of the bound in the reports on such weights."""
    shares = [report.share for report in REPORTS if (report.weights != "bfloat16") == quantized]
    return min(shares), max(shares)


def reports_on(chip: str, *, quantized: bool) -> list[SpeedReport]:
    """Return the reports on this chip with such weights."""
    return [each for each in REPORTS if each.chip == chip and (each.weights != "bfloat16") == quantized]


def chip_of(device_name: str) -> str | None:
    """Return the chip's name in `CHIPS` from MLX's name of the device, like "Apple M4 Pro", or None."""
    found = re.fullmatch(r"(?:Apple )?(M\d+(?: (?:Pro|Max|Ultra))?)", device_name.strip(), re.IGNORECASE)
    name = found[1].lower() if found else ""
    return next((chip for chip in CHIPS if chip.lower() == name), None)
