"""Merges the creates of many threads into few requests, without a thread of its own.

Group commit as databases do it: the first caller sends; those who come while requests are on the way queue up, and one
of them sends all of them with the next. A lone caller waits for nobody, and under load requests grow.

Callers who shared a request come back together, but one of them is first, and would send alone while all the others
just miss it. So whoever sends next gives them a moment: GATHER_SECONDS at most, and only until half of the callers that
there were lately have come. The other half is with the service meanwhile: both sides work at the same time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from adjourn.calls import BATCH_BYTES_MAX, BATCH_TASKS_MAX, BATCHES_IN_FLIGHT_MAX
from adjourn.errors import DeadlineExceeded, ServiceError, ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GATHER_SECONDS: Final = 0.001
"""Longest wait for the callers of the last request: about a round trip, which is what a request of their own costs."""

RequestT = TypeVar("RequestT")
RequestT_contra = TypeVar("RequestT_contra", contravariant=True)


class Send(Protocol[RequestT_contra]):
    """Sends creates and returns the errors of the refused ones by index.

    Raises: ServiceError if the request as a whole failed, after retries until `deadline`, in monotonic seconds."""

    def __call__(self, requests: Sequence[RequestT_contra], deadline: float, /) -> Mapping[int, ServiceError]: ...


class _Entry(Generic[RequestT]):
    """What one caller waits for. `wake` is a held lock: released once, when there is an outcome or the lead to take."""

    __slots__ = ("count", "deadline", "error", "failures", "leads", "requests", "size", "wake")

    def __init__(self, requests: Sequence[RequestT], size: int, deadline: float) -> None:
        self.requests = requests
        self.count = len(requests)
        self.size = size
        self.deadline = deadline
        self.wake = threading.Lock()
        self.wake.acquire()
        self.leads = False
        self.failures: Mapping[int, ServiceError] = {}
        self.error: ServiceError | None = None


class Outbox(Generic[RequestT]):
    """The queue of callers in front of `send`. One per channel: a child process after a fork makes its own."""

    def __init__(self, send: Send[RequestT]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._queue: deque[_Entry[RequestT]] = deque()
        self._leaders = 0
        self._gathering = False
        """A leader has not sent yet: whoever comes goes with it."""
        self._gathered: threading.Lock | None = None
        """Held while that leader waits for the others; whoever makes them complete releases it."""
        self._callers = 0
        self._callers_lately = 0

    def put(self, requests: Sequence[RequestT], size: int, deadline: float) -> Mapping[int, ServiceError]:
        """Send `requests`, which are no more than one request may hold and have `size` bytes; return when they are
        answered, with the errors of the refused ones by index.

        Raises: ServiceError if they could not be sent by `deadline`, in seconds of the monotonic clock."""
        entry = _Entry(requests, size, deadline)
        with self._lock:
            self._callers += 1
            self._callers_lately = max(self._callers_lately, self._callers)
            if self._gathering or self._leaders == BATCHES_IN_FLIGHT_MAX:
                self._queue.append(entry)
                if self._gathered is not None and self._complete():
                    self._gathered.release()
                    self._gathered = None
            else:
                self._leaders += 1
                self._appoint(entry)
        try:
            self._outcome(entry)
        finally:
            with self._lock:
                self._callers -= 1
        if entry.error is not None:
            raise entry.error
        return entry.failures

    def _outcome(self, entry: _Entry[RequestT]) -> None:
        """Wait for the outcome of an entry, or bring it about."""
        if not entry.leads:
            try:
                entry.wake.acquire()
            except BaseException:
                self._abandon(entry)
                raise
        if entry.leads:
            self._lead(entry)

    def _lead(self, leader: _Entry[RequestT]) -> None:
        """Send all that wait and fit into one request, tell them, and hand the lead on, whatever happens."""
        group = [leader]
        error: ServiceError | None = None
        failures: Mapping[int, ServiceError] = {}
        try:
            self._gather(group)
            merged: list[RequestT] = []
            for entry in group:
                merged += entry.requests
            failures = self._send(merged, leader.deadline)
        except ServiceError as failure:
            error = failure
        except BaseException:
            # Ctrl-C hits the leader only; the others did not ask for it and send again.
            error = DeadlineExceeded("the thread that sent this call for several was interrupted")
            raise
        finally:
            self._finish(leader, group, failures, error)

    def _gather(self, group: list[_Entry[RequestT]]) -> None:
        """Move into `group` who goes with its leader, after a moment for those who are about to come."""
        gathered = threading.Lock()
        gathered.acquire()
        try:
            with self._lock:
                if not self._complete():
                    self._gathered = gathered
            if self._gathered is gathered:
                gathered.acquire(timeout=GATHER_SECONDS)
        finally:
            with self._lock:
                self._gathered = None
                self._gathering = False
                self._take_group(group)
                # Forgotten by and by, so that a rush does not slow down the lone caller after it.
                self._callers_lately = max(self._callers, self._callers_lately * 3 // 4)
                if self._queue and self._leaders < BATCHES_IN_FLIGHT_MAX:
                    # More than one request may hold.
                    self._leaders += 1
                    self._hand_on()

    def _complete(self) -> bool:
        """Say whether half of the callers are with the leader. The lock is held."""
        return len(self._queue) + 1 >= self._callers_lately // 2

    def _appoint(self, entry: _Entry[RequestT]) -> None:
        """Give the lead to an entry. The lock is held."""
        entry.leads = True
        self._gathering = True

    def _finish(
        self,
        leader: _Entry[RequestT],
        group: list[_Entry[RequestT]],
        failures: Mapping[int, ServiceError],
        error: ServiceError | None,
    ) -> None:
        done = group
        again: list[_Entry[RequestT]] = []
        if isinstance(error, (ServiceUnavailable, DeadlineExceeded)):
            # The time of the leader is up; who came later has time left, and a repeated create is the same create.
            now = time.monotonic()
            again = [entry for entry in group if entry is not leader and entry.deadline > now]
            done = [entry for entry in group if entry is leader or entry.deadline <= now]
        start = 0
        for entry in group:
            if failures:
                own = range(start, start + entry.count)
                entry.failures = {index - start: failures[index] for index in own if index in failures}
            start += entry.count
        with self._lock:
            self._queue.extendleft(reversed(again))
            self._hand_on()
        leader.error = error
        for entry in done:
            if entry is not leader:
                entry.error = None if error is None else error.twin()
                entry.wake.release()

    def _hand_on(self) -> None:
        """Give the lead to the first in the queue, or up if there is none or they have one. The lock is held."""
        if self._queue and not self._gathering:
            entry = self._queue.popleft()
            self._appoint(entry)
            entry.wake.release()
        else:
            self._leaders -= 1

    def _take_group(self, group: list[_Entry[RequestT]]) -> None:
        """Move from the queue into `group`, which holds its leader, what fits into one request. The lock is held."""
        count, size = group[0].count, group[0].size
        while self._queue:
            entry = self._queue[0]
            count += entry.count
            size += entry.size
            if count > BATCH_TASKS_MAX or size > BATCH_BYTES_MAX:
                break
            group.append(self._queue.popleft())

    def _abandon(self, entry: _Entry[RequestT]) -> None:
        """The caller was interrupted while it waited: leave the queue, and do not take the lead to the grave."""
        with self._lock:
            if entry in self._queue:
                self._queue.remove(entry)
            if entry.leads:
                self._gathering = False
                self._hand_on()
