"""A child as its parent sees it: a process, a socket, the progress page, and the tasks it was given."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

from adjourn.worker import frames
from adjourn.worker.outcome import Outcome
from adjourn.worker.progress import ProgressPage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adjourn.worker.held_lease import HeldLease
    from adjourn.worker.progress import Progress
    from adjourn.worker.settings import ChildSettings

_T = TypeVar("_T")

_RECEIVE_BYTES: Final = 256 * 1024
_CLOSE_SECONDS: Final = 5.0
"""For a child whose socket is closed: to run its `atexit` functions and be gone."""


class ChildListener(Protocol):
    """Who hears what a child reports, on the event loop, and nothing of a child after its `wait` has returned."""

    def child_ready(self, child: ChildProcess) -> None:
        """The child has imported what it was told to and takes tasks."""

    def child_ended(
        self,
        child: ChildProcess,
        /,
        succeeded: Sequence[HeldLease],
        other: tuple[HeldLease, Outcome] | None,
        busy_seconds: float,
    ) -> None:
        """Tasks ended, at most one of them otherwise than in plain success, in `busy_seconds` of work. Never empty."""

    def child_returned(self, child: ChildProcess, /, unstarted: Sequence[HeldLease]) -> None:
        """The child gave back what it had not started, the earliest given first. May be empty."""


class Remains(NamedTuple):
    """What a dead child leaves behind. Every task it was given and had not reported is in one of these."""

    status: int
    """As in subprocess: the exit status, or minus the number of the signal."""
    broken: str | None
    """Why it could not start, if it said so."""
    succeeded: Sequence[HeldLease]
    running: HeldLease | None
    unstarted: Sequence[HeldLease]

    @property
    def cause(self) -> str:
        """The signal's name, as in `SIGKILL`, or `exit status 3`."""
        if self.status >= 0:
            return f"exit status {self.status}"
        try:
            return signal.Signals(-self.status).name
        except ValueError:
            return f"signal {-self.status}"


def settle_accounts(
    given: Sequence[_T], ended: int, progress: Progress
) -> tuple[Sequence[_T], _T | None, Sequence[_T]]:
    """Divide the tasks in `given`, of which the child reported none, into succeeded, running and unstarted.

    `ended` counts the tasks it did report, all of them before those in `given`. It may be ahead of the page by one: the
    last report was sent, and the child died before it wrote to the page.
    """
    succeeded = max(progress.ended - ended, 0)
    started = progress.started - ended
    return given[:succeeded], given[succeeded] if started > succeeded else None, given[max(started, succeeded) :]


class ChildProcess:
    """One child. Made by `start`; whoever makes it awaits `wait`, which alone gives the process and its memory back."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        connection: socket.socket,
        page: ProgressPage,
        listener: ChildListener,
    ) -> None:
        self._process = process
        self._connection = connection
        self._page = page
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._decoder = frames.FrameDecoder()
        self._unsent = bytearray()
        self._given: deque[HeldLease] = deque()
        self._ended = 0
        self._broken: str | None = None
        self._on_task_since = self._loop.time()
        self._started_then = 0
        self.recalled = False
        self._loop.add_reader(connection, self._receive)

    @classmethod
    async def start(cls, settings: ChildSettings, listener: ChildListener) -> ChildProcess:
        """Start a child by exec: nothing of this process's memory, threads or gRPC state is in it.

        Raises: OSError if the system has no process, descriptor or memory to spare.
        """
        ours, theirs = socket.socketpair()
        page_fd = ProgressPage.allocate()
        try:
            ours.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "adjourn.worker.child",
                str(theirs.fileno()),
                str(page_fd),
                str(os.getpid()),
                json.dumps(dataclasses.asdict(settings)),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), page_fd),
            )
            return cls(process, ours, ProgressPage(page_fd), listener)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(page_fd)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def load(self) -> int:
        """How many tasks it has that have not been reported as ended."""
        return len(self._given)

    def seconds_on_task(self) -> float:
        """Return for how long it has been seen on its present task: since this was first called while it was on it."""
        started = self._page.read().started
        if started != self._started_then:
            self._started_then = started
            self._on_task_since = self._loop.time()
        return self._loop.time() - self._on_task_since if self._given else 0.0

    def give(self, leases: Sequence[HeldLease]) -> None:
        """Have the tasks run, in this order, after those given before."""
        self._given.extend(leases)
        self._send((frames.TASKS, [lease.frame for lease in leases]))

    def recall(self) -> None:
        """Ask for what it has not started; `child_returned` brings it. `recalled` until a task ends or none is left."""
        self.recalled = True
        self._send((frames.RECALL,))

    def close(self) -> None:
        """Have it exit. Only when it has no tasks: it drops them and is accounted as having died."""
        if self._connection.fileno() >= 0:
            self._connection.shutdown(socket.SHUT_WR)
        self._loop.call_later(_CLOSE_SECONDS, self.kill)

    def kill(self) -> None:
        """Kill it by SIGKILL, if it still lives."""
        if self._process.returncode is None:
            self._process.kill()

    async def wait(self) -> Remains:
        """Wait for its end; return what it leaves, after its last reports have been passed on."""
        # The process's own end is awaited, not that of its socket, which a process that a task forked may hold open.
        status = await self._process.wait()
        while self._receive():
            pass
        self._loop.remove_reader(self._connection)
        self._loop.remove_writer(self._connection)
        self._connection.close()
        succeeded, running, unstarted = settle_accounts(list(self._given), self._ended, self._page.read())
        self._given.clear()
        self._page.close()
        return Remains(status, self._broken, succeeded, running, unstarted)

    def _send(self, message: tuple[Any, ...]) -> None:
        frame = frames.encode(message)
        if self._unsent:
            self._unsent += frame
            return
        sent = self._try_send(frame)
        if sent < len(frame):
            self._unsent += frame[sent:]
            self._loop.add_writer(self._connection, self._send_rest)

    def _send_rest(self) -> None:
        del self._unsent[: self._try_send(self._unsent)]
        if not self._unsent:
            self._loop.remove_writer(self._connection)

    def _try_send(self, data: bytes | bytearray) -> int:
        try:
            return self._connection.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The child is dead: `wait` will account for what it was given.
            return len(data)

    def _receive(self) -> bool:
        """Hear one piece of what the child sent. Return whether there may be more."""
        try:
            data = self._connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._connection)
            self._loop.call_later(_CLOSE_SECONDS, self.kill)
            return False
        for message in self._decoder.feed(data):
            self._hear(message)
        return True

    def _hear(self, message: tuple[Any, ...]) -> None:
        match message:
            case (frames.ENDED, ended, busy_seconds, outcome):
                leases = [self._given.popleft() for _ in range(ended - self._ended)]
                self._ended = ended
                self.recalled = False
                other = (leases.pop(), Outcome._make(outcome)) if outcome is not None else None
                self._listener.child_ended(self, leases, other, busy_seconds)
            case (frames.RETURNED, lease_ids):
                unstarted = self._take_back(lease_ids)
                if not self._given:
                    # It had started none of them, so no end of a task will come to show that it is free.
                    self.recalled = False
                self._listener.child_returned(self, unstarted)
            case (frames.READY,):
                self._listener.child_ready(self)
            case (frames.BROKEN, reason):
                self._broken = reason

    def _take_back(self, lease_ids: Iterable[str]) -> list[HeldLease]:
        wanted = set(lease_ids)
        returned = [lease for lease in self._given if lease.lease_id in wanted]
        self._given = deque(lease for lease in self._given if lease.lease_id not in wanted)
        return returned
