"""The books: nothing owed is forgotten before it is acknowledged."""

import pytest

from adjourn.v1 import lease_service_pb2 as pb
from adjourn.worker import ledger as ledger_module
from adjourn.worker.held_lease import HeldLease
from adjourn.worker.ledger import Ledger
from adjourn.worker.outcome import RELEASED, Outcome, OutcomeKind, ended_with_error


def make(*names: str, seconds: int = 60) -> list[HeldLease]:
    return [
        HeldLease(name, seconds, (name, f"queues/q/tasks/{name}", 1, b"", False, None, "", "", "", ""))
        for name in names
    ]


@pytest.fixture
def ledger():
    return Ledger()


def test_an_outcome_travels_with_its_error_and_result(ledger):
    a, b = make("a", "b")
    ledger.hold([a, b])
    ledger.settle(a, ended_with_error(OutcomeKind.CRASHED, "SIGKILL", "died"))
    ledger.settle(b, Outcome(int(OutcomeKind.SUCCEEDED), b"result"))
    request = ledger.next_batch().request()
    assert [(s.lease_id, s.outcome, s.error.type, s.result) for s in request.settlements] == [
        ("a", pb.OUTCOME_CRASHED, "SIGKILL", b""),
        ("b", pb.OUTCOME_SUCCEEDED, "", b"result"),
    ]
    assert not request.settlements[1].HasField("error")


def test_sequences_rise_and_batches_stay_until_acknowledged(ledger):
    leases = make("a", "b", "c")
    ledger.hold(leases)
    for lease in leases[:2]:
        ledger.succeed([lease])
        ledger.next_batch()
    assert [batch.sequence for batch in ledger.unacknowledged()] == [1, 2]
    assert sorted(ledger.lease_ids_claimed()) == ["a", "b", "c"]
    assert ledger.lease_ids_held() == ["c"]
    ledger.acknowledge(1)
    assert sorted(ledger.lease_ids_claimed()) == ["b", "c"]
    ledger.acknowledge(2)
    assert ledger.lease_ids_claimed() == ["c"]
    assert ledger.settled


def test_what_is_owed_but_not_sent_is_claimed(ledger):
    a, b = make("a", "b")
    ledger.hold([a, b])
    ledger.succeed([a])
    ledger.settle(b, RELEASED)
    assert sorted(ledger.lease_ids_claimed()) == ["a", "b"]
    assert not ledger.settled


def test_nothing_is_settled_of_revoked_leases(ledger):
    leases = make("a", "b", "c")
    ledger.hold(leases)
    for lease in leases:
        lease.revoked = True
    ledger.succeed([leases[0]])
    ledger.settle(leases[1], RELEASED)
    ledger.forget([leases[2]])
    assert ledger.next_batch() is None
    assert ledger.lease_ids_claimed() == []


def test_a_message_takes_no_more_than_the_wire_allows(ledger, monkeypatch):
    monkeypatch.setattr(ledger_module, "SETTLEMENTS_MAX", 2)
    leases = make("a", "b", "c")
    ledger.hold(leases)
    ledger.succeed(leases)
    assert ledger.next_batch().succeeded == ["a", "b"]
    assert ledger.next_batch().succeeded == ["c"]
    assert ledger.next_batch() is None


def test_large_results_are_spread_over_messages(ledger):
    leases = make("a", "b", "c")
    ledger.hold(leases)
    for lease in leases:
        ledger.settle(lease, Outcome(int(OutcomeKind.SUCCEEDED), bytes(1024 * 1024)))
    assert [len(ledger.next_batch().settlements) for _ in range(3)] == [1, 1, 1]
    assert ledger.next_batch() is None


def test_leases_are_found_if_held(ledger):
    (a,) = make("a")
    ledger.hold([a])
    assert ledger.find(["a", "unknown"]) == [a]


def test_the_shortest_lease_sets_the_pace_of_renewals(ledger):
    assert ledger.shortest_seconds() is None
    ledger.hold(make("a", seconds=60) + make("b", seconds=5))
    assert ledger.shortest_seconds() == 5
