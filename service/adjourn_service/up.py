"""The service and a worker as children of one process: started, watched and stopped in order.

They are separate processes, each in a session of its own, so that Ctrl-C reaches this process alone and it can drain
the worker while the service still takes its results."""

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click

LOG_LINE_BYTES_MAX: Final = 16 << 20
"""A traceback in a JSON line is long; a task may print what it likes."""

LogSink = Callable[[str, str], None]
"""Takes the name of a part and one line of its log."""

_PR_SET_PDEATHSIG: Final = 1
_COLOURS: Final = {"service": "cyan", "worker": "green"}


class Part:
    """One child process and its log."""

    def __init__(self, name: str, sink: LogSink) -> None:
        self.name = name
        self._sink = sink
        self._process: asyncio.subprocess.Process | None = None
        self._ended: asyncio.Task[int] | None = None
        self.address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set once the log says `listening`."""

    async def start(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start `adjourn` with these arguments."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "adjourn_service.up",
            str(os.getpid()),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # What tasks print shall be seen when they print it.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,
            limit=LOG_LINE_BYTES_MAX,
        )
        self._ended = asyncio.create_task(self._follow(self._process))

    async def ended(self) -> int:
        """Wait for its end; return the exit status, or minus the signal's number."""
        assert self._ended is not None, "not started"
        return await asyncio.shield(self._ended)

    @property
    def alive(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._ended is not None and not self._ended.done()

    def terminate(self) -> None:
        """Ask it to end in its own time; asked twice, a worker does not wait for running tasks."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def stop(self) -> None:
        """Ask it to end and wait until it has."""
        if self.alive:
            self.terminate()
            await self.ended()

    async def _follow(self, process: asyncio.subprocess.Process) -> int:
        assert process.stdout is not None
        async for line in process.stdout:
            self._take(line.decode(errors="replace").rstrip())
        return await process.wait()

    def _take(self, line: str) -> None:
        """Hand a line on; the service's, which are JSON, as text."""
        try:
            entry = json.loads(line)
            text = _as_text(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            self._sink(self.name, line)
            return
        if entry["event"] == "listening" and not self.address.done():
            self.address.set_result(entry["address"])
        for each in text.splitlines():
            self._sink(self.name, each)


class StartFailed(Exception):
    """The service ended before it listened; its log says why. `status` is its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the service did not start (exit status {status})")
        self.status = status


class LocalStack:
    """A service on the loopback address with its store in a folder, and a worker. Make it on a running event loop."""

    def __init__(self, folder: Path, sink: LogSink) -> None:
        self._folder = folder
        self.service = Part("service", sink)
        self.worker = Part("worker", sink)
        self.target = ""

    async def start_service(self, port: int = 0) -> str:
        """Start the service and wait until it listens; return its target. Raises: StartFailed."""
        store = f"sqlite:///{quote(str(self._folder.absolute() / 'adjourn.db'))}"
        # Not localhost: gRPC is content if it gets one of its two addresses, and another service may have the other.
        listen = f"127.0.0.1:{port}"
        await self.service.start(["serve", "--listen", listen, "--store", store, "--log-format", "json"])
        ended = asyncio.create_task(self.service.ended())
        waits: set[asyncio.Future[Any]] = {self.service.address, ended}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise StartFailed(ended.result())
        ended.cancel()
        self.target = self.service.address.result()
        return self.target

    async def start_worker(self, options: Sequence[str]) -> None:
        """Start the worker."""
        await self.worker.start(["worker", *options], {"ADJOURN_TARGET": self.target})

    async def stop(self) -> None:
        """Drain the worker, then stop the service, which takes the worker's last results."""
        await self.worker.stop()
        await self.service.stop()


async def run_until_stopped(folder: Path, port: int, worker_options: Sequence[str]) -> int:
    """Run service and worker until SIGINT or SIGTERM, or until one of them ends. Return the exit status."""
    stack = LocalStack(folder, print_log)
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            stack.worker.terminate()
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await stack.start_service(port)
        await stack.start_worker(worker_options)
        fallen = await _until_one_ends((stack.service, stack.worker), stopping)
    except StartFailed as failure:
        return failure.status if failure.status > 0 else 1
    finally:
        await stack.stop()
    if fallen:
        click.echo(f"adjourn: {fallen}; the log above says why", err=True)
    return 1 if fallen else 0


async def _until_one_ends(parts: Sequence[Part], stopping: asyncio.Event) -> str:
    """Wait until told to stop or a part ends. Return which part ended and how; empty if none did."""
    told = asyncio.create_task(stopping.wait())
    ends = [asyncio.create_task(part.ended()) for part in parts]
    waits: set[asyncio.Task[Any]] = {told, *ends}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    fallen = [(part, end.result()) for part, end in zip(parts, ends, strict=True) if end.done()]
    for wait in waits:
        wait.cancel()
    if stopping.is_set():
        return ""
    return " and ".join(f"the {part.name} {_cause(status)}" for part, status in fallen)


def print_log(name: str, line: str) -> None:
    """Print a line of a part's log on stderr behind the part's name."""
    if line.startswith("adjourn: "):
        click.echo(line, err=True)
    else:
        click.echo(f"{click.style(f'{name:<7} |', fg=_COLOURS.get(name))} {line}", err=True)


def _as_text(entry: Mapping[str, str]) -> str:
    facts = " ".join(
        f"{key}={value}" for key, value in entry.items() if key not in ("time", "level", "logger", "event", "traceback")
    )
    line = f"{entry['time']} {entry['level']:<7} {entry['event']} {facts}".rstrip()
    return f"{line}\n{entry['traceback']}" if "traceback" in entry else line


def _cause(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _run_tethered(parent_pid: int, arguments: list[str]) -> int:
    """Run `adjourn` with these arguments, asked to end by the kernel when the parent dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:
            return 1
    from adjourn.cli import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(_run_tethered(int(sys.argv[1]), sys.argv[2:]))
