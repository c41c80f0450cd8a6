"""The inside of a child: runs the tasks it is given, one after the other, and reports how they ended.

The main thread runs tasks; a second one receives. Both report, under one lock. What a report would say about plain
successes stands in the progress page as well, so reports of them may wait for company: until the child has nothing to
do, until there are `REPORT_TASKS_MAX`, or for `REPORT_SECONDS`. Any other outcome is in the socket before the next task
starts, and stays there if the child dies.
"""

from __future__ import annotations

import os
import select
import threading
from array import array
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn

from adjourn.worker import frames
from adjourn.worker.outcome import SUCCEEDED
from adjourn.worker.progress import ENDED, STARTED

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, MutableSequence

    from adjourn.worker.outcome import Outcome
    from adjourn.worker.progress import ProgressPage

REPORT_TASKS_MAX: Final = 64
REPORT_SECONDS: Final = 0.002
_RECEIVE_BYTES: Final = 256 * 1024


class Runner:
    """Runs tasks from `connection` with `handle` until the other end closes it."""

    def __init__(
        self, connection: socket.socket, page: ProgressPage, handle: Callable[[frames.TaskFrame], Outcome]
    ) -> None:
        self._connection = connection
        self._counters: MutableSequence[int] | memoryview[int] = page.counters
        self._handle = handle
        # Taken from the left by the main thread, from the right by the receiver when the parent recalls: each is one
        # atomic operation, and what was started is always the beginning of what was given. The parent's accounts rest
        # on that.
        self._waiting: deque[frames.TaskFrame] = deque()
        self._work_came = threading.Lock()
        self._work_came.acquire()
        self._closed = False
        self._sending = threading.Lock()
        self._reported = 0
        self._busy_since = monotonic()
        self._receiver_sleeps = False
        self._alarm_read, self._alarm_write = os.pipe()
        os.register_at_fork(after_in_child=self._disown)

    def run(self) -> None:
        """Run tasks until the parent closes the connection; if it does so with work under way, exit at once."""
        self._send((frames.READY,))
        threading.Thread(target=self._receive, name="adjourn-receiver", daemon=True).start()
        started = 0
        while True:
            try:
                task = self._waiting.popleft()
            except IndexError:
                self._report_successes()
                self._work_came.acquire()
                if self._closed:
                    return
                self._busy_since = monotonic()
                continue
            started += 1
            self._counters[STARTED] = started
            outcome = self._handle(task)
            if outcome is not SUCCEEDED:
                self._report(started, outcome)
                continue
            self._counters[ENDED] = started
            if started - self._reported >= REPORT_TASKS_MAX or monotonic() - self._busy_since >= REPORT_SECONDS:
                self._report_successes()
            elif self._receiver_sleeps:
                # The next task may be a long one: have the receiver report this one in time.
                self._receiver_sleeps = False
                os.write(self._alarm_write, b"!")

    def _report_successes(self) -> None:
        with self._sending:
            ended = self._counters[ENDED]
            if ended > self._reported:
                self._send_ended(ended, None)

    def _report(self, ended: int, outcome: Outcome) -> None:
        with self._sending:
            self._send_ended(ended, tuple(outcome))
        # Only now: a task that counts as ended without an outcome in the socket is a success.
        self._counters[ENDED] = ended

    def _send_ended(self, ended: int, outcome: tuple[Any, ...] | None) -> None:
        now = monotonic()
        self._reported = ended
        self._send((frames.ENDED, ended, now - self._busy_since, outcome))
        self._busy_since = now

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            self._connection.sendall(frames.encode(message))
        except OSError:
            _exit_orphaned()

    def _receive(self) -> None:
        decoder = frames.FrameDecoder()
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._alarm_read, select.POLLIN)
        while True:
            self._receiver_sleeps = True
            if self._counters[ENDED] > self._reported:
                self._receiver_sleeps = False
            events = poll.poll(None if self._receiver_sleeps else REPORT_SECONDS * 1000)
            self._receiver_sleeps = False
            if not events:
                self._report_successes()
            for fd, _ in events:
                if fd == self._alarm_read:
                    os.read(fd, 64)
                    continue
                try:
                    data = self._connection.recv(_RECEIVE_BYTES)
                except OSError:
                    data = b""
                if not data:
                    self._close()
                    return
                for message in decoder.feed(data):
                    self._obey(message)

    def _obey(self, message: tuple[Any, ...]) -> None:
        if message[0] == frames.TASKS:
            self._waiting.extend(message[1])
            self._wake_up()
        elif message[0] == frames.RECALL:
            returned: list[str] = []
            try:
                while True:
                    returned.append(self._waiting.pop()[0])
            except IndexError:
                pass
            with self._sending:
                self._send((frames.RETURNED, returned))

    def _wake_up(self) -> None:
        # Only the receiver releases, so the lock cannot be released by another between the two lines.
        if self._work_came.locked():
            self._work_came.release()

    def _close(self) -> None:
        if self._waiting or self._counters[STARTED] != self._counters[ENDED]:
            _exit_orphaned()
        self._closed = True
        self._wake_up()

    def _disown(self) -> None:
        # A task that forks takes a copy of all this along. The copy must neither report nor run what the original does.
        self._connection.close()
        self._counters = array("Q", self._counters)
        self._waiting.clear()


def _exit_orphaned() -> NoReturn:
    # The parent is gone: it will settle nothing more, and the lease of the running task goes to another worker.
    os._exit(1)
