"""The children as a whole: which of them runs what, and what becomes of their tasks when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from adjourn.worker import pace
from adjourn.worker.child_process import ChildProcess, Remains
from adjourn.worker.outcome import RELEASED, Outcome, OutcomeKind, ended_with_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adjourn.worker.held_lease import HeldLease
    from adjourn.worker.settings import ChildSettings

logger = logging.getLogger("adjourn.worker")

RESTART_SECONDS_MIN: Final = 0.1
RESTART_SECONDS_MAX: Final = 10.0
"""Between starts of a child that dies before it is ready, doubling."""


class SettlementSink(Protocol):
    """Takes the end of every lease that the pool accepted, exactly once for each that was not revoked."""

    def succeeded(self, leases: Sequence[HeldLease]) -> None:
        """The tasks succeeded and there is no result to keep."""

    def settled(self, lease: HeldLease, outcome: Outcome) -> None:
        """The task ended in some other way, or was not run."""

    def dropped(self, leases: Sequence[HeldLease]) -> None:
        """Revoked leases that no child has or will have."""

    def target_changed(self) -> None:
        """The pool has a child that it did not have before: `Pool.target` has grown."""


class Pool:
    """Keeps `processes` children alive and busy."""

    def __init__(
        self, settings: ChildSettings, processes: int, prefetch: int, worker_id: str, sink: SettlementSink
    ) -> None:
        self._settings = settings
        self._processes = processes
        self._prefetch = prefetch
        self._worker_id = worker_id
        self._sink = sink
        self._pace = pace.Pace()
        self._waiting: deque[HeldLease] = deque()
        self._children: set[ChildProcess] = set()
        self._ready: list[ChildProcess] = []
        self._look: asyncio.Handle | None = None
        self._look_at = 0.0
        self._draining = False
        self._discarding = False
        self._empty = asyncio.Event()
        self._closing = asyncio.Event()
        self._unable = False
        # How long every child has been on its task, if that is long; 0 as soon as one of them is known to get on.
        self._stuck_seconds = 0.0

    # -- what the link asks for --------------------------------------------------------------------------------------

    @property
    def target(self) -> int:
        """How many leases, held or asked for, would keep the children busy."""
        if self._draining:
            return 0
        return pace.supply(max(self._pace.seconds, self._stuck_seconds), len(self._ready), self._prefetch)

    @property
    def held(self) -> int:
        """How many leases are waiting or with children."""
        return len(self._waiting) + sum(child.load for child in self._children)

    def accept(self, leases: Sequence[HeldLease]) -> None:
        """Have the tasks run. What cannot be run at all is released at once."""
        if self._draining or self._unable or self._stuck_seconds:
            self._release(leases)
            return
        self._waiting.extend(leases)
        self._dispatch()

    def revoke(self, leases: Iterable[HeldLease]) -> None:
        """Take note that the service has taken the leases back: those that wait are dropped, running ones run on."""
        for lease in leases:
            lease.revoked = True
        self._drop_revoked()

    # -- life cycle --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the children alive until `close` or `discard`."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._processes):
                group.create_task(self._keep_alive())

    async def drain(self) -> None:
        """Release everything that has not been started and wait until the rest has ended."""
        self._draining = True
        self._release_waiting()
        self._recall(self._ready)
        self._note_if_empty()
        await self._empty.wait()

    def discard(self) -> None:
        """Kill the children and release what they are running: an attempt that a shutdown ends does not count."""
        self._discarding = True
        self._closing.set()
        for child in self._children:
            child.kill()

    def close(self) -> None:
        """Have the children exit; `run` then returns. After `drain`."""
        self._closing.set()
        for child in self._children:
            if child in self._ready:
                child.close()
            else:
                child.kill()

    # -- what the children report ------------------------------------------------------------------------------------

    def child_ready(self, child: ChildProcess) -> None:
        """See ChildListener."""
        self._ready.append(child)
        self._unable = False
        self._stuck_seconds = 0.0
        self._dispatch()
        self._sink.target_changed()

    def child_ended(
        self,
        _child: ChildProcess,
        /,
        succeeded: Sequence[HeldLease],
        other: tuple[HeldLease, Outcome] | None,
        busy_seconds: float,
    ) -> None:
        """See ChildListener."""
        self._stuck_seconds = 0.0
        self._pace.observe(len(succeeded) + (other is not None), busy_seconds)
        self._dispatch()
        if succeeded:
            self._sink.succeeded(succeeded)
        if other is not None:
            self._sink.settled(*other)
        self._note_if_empty()

    def child_returned(self, child: ChildProcess, /, unstarted: Sequence[HeldLease]) -> None:
        """See ChildListener."""
        if child.load == 0:
            # It had started none of them: it was not stuck but had no time on the processor.
            self._stuck_seconds = 0.0
        self._wait_again(unstarted)

    # -- dispatch ----------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self._waiting:
            capacity = pace.child_capacity(self._pace.seconds)
            takers = sorted((child for child in self._ready if _takes_more(child, capacity)), key=_load)
            # An idle child comes first: a task goes behind a running one only when no other child is free.
            for left, child in zip(range(len(takers), 0, -1), takers, strict=True):
                fair = pace.share(len(self._waiting), left)
                count = min(capacity - child.load, pace.WINDOW_TASKS_MAX, fair)
                child.give([self._waiting.popleft() for _ in range(count)])
                if not self._waiting:
                    break
        self._look_later()

    def _look_later(self) -> None:
        """Look in a while whether tasks are stuck behind others, if there are any."""
        if any(child.load == 0 for child in self._ready) and any(child.load > 1 for child in self._ready):
            delay = pace.STALLED_SECONDS
        elif self._waiting or any(child.load > 1 for child in self._ready):
            delay = pace.LOOK_SECONDS
        else:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + delay
        if self._look is not None:
            if self._look_at <= when:
                return
            self._look.cancel()
        self._look_at = when
        self._look = loop.call_at(when, self._look_for_stuck)

    def _look_for_stuck(self) -> None:
        self._look = None
        on_task = {child: child.seconds_on_task() for child in self._ready}
        least = min(on_task.values(), default=0.0)
        if least < pace.STALLED_SECONDS:
            self._recall(child for child, seconds in on_task.items() if seconds >= pace.STALLED_SECONDS)
        elif least >= pace.HOARDED_SECONDS:
            self._stuck_seconds = least
            self._recall(on_task)
            self._release_waiting()
        self._look_later()

    def _recall(self, children: Iterable[ChildProcess]) -> None:
        for child in children:
            if child.load > 1 and not child.recalled:
                child.recall()

    def _wait_again(self, leases: Sequence[HeldLease]) -> None:
        if self._draining or self._unable or self._stuck_seconds:
            self._release(leases)
        else:
            self._waiting.extendleft(reversed(leases))
            self._drop_revoked()
            self._dispatch()
        self._note_if_empty()

    def _drop_revoked(self) -> None:
        if dropped := [lease for lease in self._waiting if lease.revoked]:
            self._waiting = deque(lease for lease in self._waiting if not lease.revoked)
            self._sink.dropped(dropped)

    def _release_waiting(self) -> None:
        leases = list(self._waiting)
        self._waiting.clear()
        self._release(leases)

    def _release(self, leases: Iterable[HeldLease]) -> None:
        for lease in leases:
            self._sink.settled(lease, RELEASED)

    def _note_if_empty(self) -> None:
        if self._draining and self.held == 0:
            self._empty.set()

    # -- supervision -------------------------------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        failures = 0
        while not self._closing.is_set():
            try:
                child = await ChildProcess.start(self._settings, self)
            except OSError as error:
                logger.error("cannot start a child process: %s", error)  # noqa: TRY400 - the trace says no more.
                failures += 1
            else:
                failures = 0 if await self._watch(child) else failures + 1
            if failures:
                self._note_unable()
                await self._pause(min(RESTART_SECONDS_MIN * 2 ** (failures - 1), RESTART_SECONDS_MAX))

    async def _watch(self, child: ChildProcess) -> bool:
        """Wait for the end of a child and take over what it leaves. Return whether it was ever ready."""
        self._children.add(child)
        if self._closing.is_set():
            child.kill()
        try:
            remains = await child.wait()
        finally:
            # Lives on only if this task was cancelled.
            child.kill()
            self._children.discard(child)
        was_ready = child in self._ready
        if was_ready:
            self._ready.remove(child)
        self._bury(child, remains)
        return was_ready

    def _bury(self, child: ChildProcess, remains: Remains) -> None:
        if remains.broken is not None:
            logger.error("child cannot start pid=%d: %s", child.pid, remains.broken)
        elif not self._closing.is_set():
            task = f" task={remains.running.name} attempt={remains.running.attempt}" if remains.running else ""
            logger.error("child died cause=%r pid=%d%s", remains.cause, child.pid, task)
        if remains.succeeded:
            self._sink.succeeded(remains.succeeded)
        if remains.running is not None:
            message = (
                f"child process {child.pid} of worker {self._worker_id} died while it ran the task: {remains.cause}"
            )
            crashed = ended_with_error(OutcomeKind.CRASHED, remains.cause, message)
            self._sink.settled(remains.running, RELEASED if self._discarding else crashed)
        self._wait_again(remains.unstarted)

    def _note_unable(self) -> None:
        """Without a child that can run anything, keep no lease from workers that can."""
        if not self._ready:
            self._unable = True
            self._release_waiting()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)


def _load(child: ChildProcess) -> int:
    return child.load


def _takes_more(child: ChildProcess, capacity: int) -> bool:
    # One that was recalled is still on the task for which it was. One that has work is topped up by half its capacity
    # at a time, so that hand-overs stay few.
    room = capacity - child.load
    return room > 0 and not child.recalled and (child.load == 0 or 2 * room >= capacity)
