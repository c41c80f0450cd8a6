"""The worker's books: which leases it holds, and which settlements it owes the service. No I/O."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from adjourn.v1.lease_service_pb2 import Settlement, WorkRequest
from adjourn.v1.task_pb2 import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adjourn.v1.lease_service_pb2 import Outcome as WireOutcome
    from adjourn.worker.held_lease import HeldLease
    from adjourn.worker.outcome import Outcome

SETTLEMENTS_MAX: Final = 10_000
"""Bound of WorkRequest.succeeded_lease_ids and of WorkRequest.settlements."""
BATCH_BYTES_MAX: Final = 2 * 1024 * 1024
"""Of results and errors in one message; gRPC servers refuse messages beyond 4 MiB unless told otherwise."""


class Batch(NamedTuple):
    """Settlements that travel in one message, and again in the same one if their acknowledgement is lost."""

    sequence: int
    succeeded: Sequence[str]
    settlements: Sequence[Settlement]

    def request(self) -> WorkRequest:
        """Return the message, to which more may be added."""
        return WorkRequest(sequence=self.sequence, succeeded_lease_ids=self.succeeded, settlements=self.settlements)

    def lease_ids(self) -> list[str]:
        """Return what it settles."""
        return [*self.succeeded, *(settlement.lease_id for settlement in self.settlements)]


class Ledger:
    """A lease is held until its end, then its settlement is owed, then in an unacknowledged batch, then forgotten."""

    def __init__(self) -> None:
        self._held: dict[str, HeldLease] = {}
        self._succeeded: list[str] = []
        self._settlements: deque[Settlement] = deque()
        self._unacknowledged: deque[Batch] = deque()
        self._sequence = 0

    def hold(self, leases: Iterable[HeldLease]) -> None:
        """Enter new leases."""
        self._held.update((lease.lease_id, lease) for lease in leases)

    def succeed(self, leases: Iterable[HeldLease]) -> None:
        """End held leases with success. Those that were revoked are only forgotten."""
        for lease in leases:
            del self._held[lease.lease_id]
            if not lease.revoked:
                self._succeeded.append(lease.lease_id)

    def settle(self, lease: HeldLease, outcome: Outcome) -> None:
        """End one held lease with any outcome. One that was revoked is only forgotten."""
        del self._held[lease.lease_id]
        if not lease.revoked:
            self._settlements.append(_settlement(lease.lease_id, outcome))

    def forget(self, leases: Iterable[HeldLease]) -> None:
        """Drop held leases that the service has taken back."""
        for lease in leases:
            del self._held[lease.lease_id]

    def find(self, lease_ids: Iterable[str]) -> list[HeldLease]:
        """Return the leases among `lease_ids` that are held."""
        return [self._held[lease_id] for lease_id in lease_ids if lease_id in self._held]

    def next_batch(self) -> Batch | None:
        """Return what is owed, as much as one message takes, and keep it as unacknowledged; None if nothing is."""
        succeeded = self._succeeded[:SETTLEMENTS_MAX]
        del self._succeeded[:SETTLEMENTS_MAX]
        settlements: list[Settlement] = []
        size = 0
        while self._settlements and len(settlements) < SETTLEMENTS_MAX:
            size += self._settlements[0].ByteSize()
            if settlements and size > BATCH_BYTES_MAX:
                break
            settlements.append(self._settlements.popleft())
        if not succeeded and not settlements:
            return None
        self._sequence += 1
        batch = Batch(self._sequence, succeeded, settlements)
        self._unacknowledged.append(batch)
        return batch

    def acknowledge(self, sequence: int) -> None:
        """Forget the batches up to `sequence`: they are durable."""
        while self._unacknowledged and self._unacknowledged[0].sequence <= sequence:
            self._unacknowledged.popleft()

    def unacknowledged(self) -> list[Batch]:
        """Return the batches to send again on a new stream, in their order."""
        return list(self._unacknowledged)

    def lease_ids_held(self) -> list[str]:
        """Return the leases to keep alive."""
        return list(self._held)

    def lease_ids_claimed(self) -> list[str]:
        """Return every lease that a new stream must claim: those held, those whose settlement may be lost."""
        claimed = [*self._held, *self._succeeded, *(settlement.lease_id for settlement in self._settlements)]
        for batch in self._unacknowledged:
            claimed += batch.lease_ids()
        return claimed

    def shortest_seconds(self) -> int | None:
        """Return the shortest duration of a held lease; None if there is none."""
        return min((lease.seconds for lease in self._held.values()), default=None)

    @property
    def held(self) -> int:
        """How many leases are held."""
        return len(self._held)

    @property
    def in_flight(self) -> int:
        """How many batches wait for their acknowledgement."""
        return len(self._unacknowledged)

    @property
    def settled(self) -> bool:
        """Whether every settlement has been acknowledged."""
        return not (self._succeeded or self._settlements or self._unacknowledged)


def _settlement(lease_id: str, outcome: Outcome) -> Settlement:
    settlement = Settlement(
        lease_id=lease_id, outcome=cast("WireOutcome.ValueType", outcome.kind), result=outcome.result
    )
    if outcome.error_type:
        settlement.error.CopyFrom(
            TaskError(type=outcome.error_type, message=outcome.error_message, traceback=outcome.error_traceback)
        )
    return settlement
