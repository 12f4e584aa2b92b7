"""Draw docs/figures/schedules.png: the gain from pruning and overlap, simulated for the paper's settings.

Run `python docs/figures/make_schedules.py` (needs the extra `docs`). The figures are those of `python -m
benchmarks.schedules`. The script also prints the rows of the table in docs/tune.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.schedules import MACHINES, compare
from markovian_rsa_mlx.config import RSAConfig
from markovian_rsa_mlx.predict.lengths import LogNormal
from markovian_rsa_mlx.predict.workload import SCHEDULES

LENGTHS = LogNormal(mean=12_000, sigma=0.8)
PROFILES = ("paper-light-8k", "paper-16k", "paper-headline-40k", "apex-xhigh")
COLOURS = dict(zip(map(str, SCHEDULES), ("#b8b8b8", "#7fa8c9", "#d9a441", "#1f5f8b"), strict=True))
BATCHES = 10


def main() -> None:
    figure, axes = plt.subplots(2, len(MACHINES), figsize=(12, 6), sharey="row", layout="constrained")
    for row, finals in zip(axes, (1, 0), strict=True):
        for axis, (machine, costs) in zip(row, MACHINES.items(), strict=True):
            for place, name in enumerate(PROFILES):
                config = RSAConfig.profile(name).replace(final_candidates=finals)
                found = compare(config, LENGTHS, costs, batches=BATCHES)
                gains = " | ".join(f"{found[0].seconds / each.seconds:.2f}" for each in found[1:])
                traces = f"{found[0].traces:.1f} | {found[-1].traces:.1f}"
                print(f"| {name} | {'1' if finals else 'N'} | {machine} | {traces} | {gains} |", flush=True)
                for offset, each in enumerate(found):
                    speedup = found[0].seconds / each.seconds
                    at = place + (offset - 1.5) * 0.2
                    axis.bar(at, speedup, 0.19, color=COLOURS[str(each.schedule)])
                    axis.text(at, speedup + 0.02, f"{speedup:.2f}", ha="center", va="bottom", fontsize=6, rotation=90)
            axis.axhline(1, color="black", linewidth=0.5)
            axis.set_xticks(range(len(PROFILES)), PROFILES, fontsize=7)
            axis.set_title(f"{machine}, F = {'1' if finals else 'N'}", fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("speed-up over the loop over rounds")
        row[0].margins(y=0.15)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    figure.legend(handles, COLOURS, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(
        f"One problem on one engine; log-normal lengths, mean {LENGTHS.mean:,.0f} tokens, sigma {LENGTHS.sigma:g}; "
        f"means of {BATCHES} simulations",
        fontsize=10,
    )
    figure.savefig(Path(__file__).with_name("schedules.png"), dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
