"""Real servers as separate processes, on ports of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from markovian_rsa_mlx import reasoner

from ..backends.fake_upstream import free_port

MODEL = str(reasoner.model_path())


class MLXServer:
    """`mlx_lm.server` with the embedded reasoner. `url` is the root of its API. It can be killed and restarted."""

    def __init__(self, folder: Path) -> None:
        self.port, self._cache = free_port(), folder / "hub"
        self._cache.mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._log = folder / "server.log"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", MODEL, "--port", str(self.port)]
        # Its list of models scans the hub's cache, which must exist.
        environment = os.environ | {"HF_HUB_CACHE": str(self._cache), "HF_HUB_OFFLINE": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        end = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False


class MRSAServer:
    """`mrsa serve` as a separate process."""

    def __init__(self, home: Path, *options: str, port: int = 0) -> None:
        self.home = home
        command = [sys.executable, "-m", "markovian_rsa_mlx", "serve", "--port", str(port), *options]
        environment = os.environ | {"MRSA_HOME": str(home)}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.output = ""
        while " on http" not in self.output:
            line = self.process.stderr.readline()
            assert line, self.output
            self.output += line
        self.url = self.output.split(" on ")[1].split("/v1")[0]

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and return the exit code. `output` then has all of stderr."""
        self.process.send_signal(sign)
        _, rest = self.process.communicate(timeout=60)
        self.output += rest
        return self.process.returncode
