"""Makes the screenshots of the guide from real runs of the embedded reasoner: `python docs/figures/screenshots.py`.

Needs the `test` extra and a Chromium on the PATH. Each picture is kept below 200 kB.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.e2e.viewer_browser import browser, watch

HERE = Path(__file__).parent
LIMIT = 200_000
MRSA = [sys.executable, "-m", "markovian_rsa_mlx"]
RUN = ("demo", "--puzzle-seed", "0", "--seed", "1")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        trail, page = Path(folder) / "run.jsonl", Path(folder) / "run.html"
        subprocess.run([*MRSA, *RUN, "--audit", str(trail)], check=False, capture_output=True)
        subprocess.run([*MRSA, "view", str(trail), "--out", str(page)], check=True, capture_output=True)
        with browser() as chrome:
            for name, route, width, height, scheme in (
                ("view-overview", "#/", 1180, 1080, "light"),
                ("view-trace", "#/trace/r2-05", 1180, 1500, "light"),
                ("view-compare", "#/compare/r1-02/r2-05", 1180, 420, "dark"),
                ("view-phone", "#/", 390, 800, "dark"),
            ):
                context = chrome.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                shown = watch(context, page.as_uri())
                shown.go(route)
                shown.page.wait_for_timeout(1_500)  # what was kept of the tails is drawn when the browser is idle
                target = HERE / f"{name}.png"
                shown.page.screenshot(path=target)
                context.close()
                assert target.stat().st_size < LIMIT, f"{target} is {target.stat().st_size} bytes"
                print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
