"""A child as its parent sees it, without the child; and the accounts of a dead one."""

import asyncio
import os
import socket
from typing import Any, cast

import pytest

from adjourn.worker import frames
from adjourn.worker.child_process import ChildProcess, Remains, settle_accounts
from adjourn.worker.held_lease import HeldLease
from adjourn.worker.progress import Progress, ProgressPage

GIVEN = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("ended", "progress", "succeeded", "running", "unstarted"),
    [
        pytest.param(0, (0, 0), [], None, GIVEN, id="died before its first task"),
        pytest.param(0, (1, 0), [], "a", ["b", "c", "d"], id="died in its first task"),
        pytest.param(0, (3, 2), ["a", "b"], "c", ["d"], id="two successes were not reported yet"),
        pytest.param(0, (2, 2), ["a", "b"], None, ["c", "d"], id="died between tasks"),
        pytest.param(7, (9, 8), ["a"], "b", ["c", "d"], id="seven were reported before"),
        pytest.param(8, (8, 7), [], None, GIVEN, id="the last report was sent, the page not written"),
        pytest.param(0, (4, 4), GIVEN, None, [], id="died with everything done"),
    ],
)
def test_each_task_is_in_one_account(ended, progress, succeeded, running, unstarted):
    assert settle_accounts(GIVEN, ended, Progress(*progress)) == (succeeded, running, unstarted)


@pytest.mark.parametrize(
    ("status", "cause"), [(-9, "SIGKILL"), (-11, "SIGSEGV"), (3, "exit status 3"), (-63, "signal 63")]
)
def test_the_cause_of_death_has_a_name(status, cause):
    assert Remains(status, None, [], None, []).cause == cause


class Listener:
    """Notes what it hears, and lets a test wait for it."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()

    def child_ready(self, child):
        self.heard.put_nowait(("ready",))

    def child_ended(self, child, succeeded, other, busy_seconds):
        self.heard.put_nowait(("ended", [lease.lease_id for lease in succeeded], other))

    def child_returned(self, child, unstarted):
        self.heard.put_nowait(("returned", [lease.lease_id for lease in unstarted]))


class Remote:
    """Speaks for a child."""

    def __init__(self) -> None:
        ours, self._socket = socket.socketpair()
        ours.setblocking(False)
        page_fd = ProgressPage.allocate()
        self.listener = Listener()
        self.child = ChildProcess(cast("Any", None), ours, ProgressPage(page_fd), self.listener)
        os.close(page_fd)

    async def says(self, *message: Any) -> tuple[Any, ...]:
        self._socket.sendall(frames.encode(message))
        return await self.listener.heard.get()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.child._connection)
        self.child._connection.close()
        self._socket.close()


@pytest.fixture
async def remote():
    remote = Remote()
    yield remote
    remote.close()


def leases(*names: str) -> list[HeldLease]:
    return [HeldLease(name, 60, (name, "queues/q/tasks/t", 1, b"", False, None, "", "", "", "")) for name in names]


async def test_ends_are_those_of_the_tasks_given_first(remote):
    remote.child.give(leases("a", "b", "c", "d"))
    assert await remote.says(frames.ENDED, 2, 0.1, None) == ("ended", ["a", "b"], None)
    _, succeeded, (lease, outcome) = await remote.says(frames.ENDED, 4, 0.1, (2, b"", "E", "m", "t"))
    assert (succeeded, lease.lease_id, outcome.error_type) == (["c"], "d", "E")
    assert remote.child.load == 0


async def test_a_recalled_child_is_free_when_it_ends_its_task(remote):
    remote.child.give(leases("a", "b", "c"))
    remote.child.recall()
    assert await remote.says(frames.RETURNED, ["c", "b"]) == ("returned", ["b", "c"])
    assert remote.child.recalled
    await remote.says(frames.ENDED, 1, 0.1, None)
    assert not remote.child.recalled


async def test_a_recalled_child_that_had_started_nothing_is_free(remote):
    remote.child.give(leases("a", "b"))
    remote.child.recall()
    await remote.says(frames.RETURNED, ["b", "a"])
    assert not remote.child.recalled
    assert remote.child.load == 0
