"""A lease as the main process holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adjourn.v1.task_pb2 import Lease
    from adjourn.worker.frames import TaskFrame


class HeldLease:
    """A lease and the frame that hands its task to a child. `revoked`: the service took it back; settle nothing."""

    __slots__ = ("frame", "lease_id", "revoked", "seconds")

    def __init__(self, lease_id: str, seconds: int, frame: TaskFrame) -> None:
        self.lease_id = lease_id
        self.seconds = seconds
        self.frame = frame
        self.revoked = False

    @property
    def name(self) -> str:
        """Resource name of the task."""
        return self.frame[1]

    @property
    def attempt(self) -> int:
        """Number of the attempt, from 1."""
        return self.frame[2]

    @classmethod
    def received(cls, lease: Lease) -> HeldLease:
        """Take what is needed out of the message; each field that is read costs, and leases come by the thousand."""
        task = lease.task
        lease_id = lease.lease_id
        return cls(
            lease_id,
            # Whole seconds: a shorter lease than granted is a safe one.
            lease.duration.seconds,
            (
                lease_id,
                task.name,
                lease.attempt,
                task.payload,
                lease.keep_result,
                dict(task.headers) or None,
                task.uid,
                task.callable,
                task.tag,
                task.key,
            ),
        )
