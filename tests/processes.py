"""Real adjourn processes for tests and benchmarks: started, killed, restarted, and waited for by what they do."""

import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
COMMAND = str(Path(sys.executable).parent / "adjourn")
START_SECONDS = 30.0
STOP_SECONDS = 60.0


class Process:
    """A process whose log goes to a file, killed at the latest when the block ends."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.command = list(command)
        self.log = log
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        self._popen: subprocess.Popen[bytes] | None = None
        self._seen = 0

    @property
    def pid(self) -> int:
        assert self._popen is not None, "not started"
        return self._popen.pid

    def start(self) -> Self:
        self._seen = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.env)
        return self

    def wait_for_log(self, pattern: str, seconds: float = START_SECONDS) -> re.Match[str]:
        """Wait until a line logged since the start matches, and return the match."""
        assert self._popen is not None
        with selectors.DefaultSelector() as timer:
            end = time.monotonic() + seconds
            while True:
                text = self.log.read_bytes()[self._seen :].decode(errors="replace")
                match = re.search(pattern, text)
                if match:
                    return match
                if self._popen.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"{self.command} did not log {pattern!r}; its log:\n{text}")
                timer.select(0.01)

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self._popen is not None
        self._popen.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        assert self._popen is not None
        return self._popen.wait(seconds)

    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def stop(self) -> int:
        """Ask to end as an operator would, and return the exit status."""
        self.kill(signal.SIGTERM)
        return self.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._popen is not None and self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()


class Service(Process):
    """`adjourn serve`. The port is chosen at the first start and kept over restarts."""

    def __init__(self, folder: Path, *options: str, store: str | None = None, port: int = 0) -> None:
        self.folder = folder
        self.options = options
        self.store = store or f"sqlite:///{folder}/adjourn.db"
        self.port = port
        super().__init__([], folder / "service.log")

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Self:
        listen = f"127.0.0.1:{self.port}"
        self.command = [COMMAND, "serve", "--store", self.store, "--listen", listen, *self.options]
        super().start()
        self.port = int(self.wait_for_log(r"listening.*127\.0\.0\.1:(\d+)")[1])
        return self


class Worker(Process):
    """`adjourn worker`, with its children."""

    def __init__(self, folder: Path, target: str, *options: str, name: str = "worker") -> None:
        super().__init__([COMMAND, "worker", "--target", target, *options], folder / f"{name}.log")

    def children(self) -> list[int]:
        """Return the pids of the processes that run tasks."""
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in text.split()]
