"""The enumerations have the numbers of the wire API, and the values their promised shape."""

from dataclasses import FrozenInstanceError
from enum import IntEnum

import pytest

from adjourn.v1 import lease_service_pb2, queue_pb2, task_pb2
from adjourn_service.model import (
    AttemptOutcome,
    NewTask,
    Outcome,
    Queue,
    QueuePolicy,
    RateLimits,
    RetryPolicy,
    StopRule,
    TaskState,
)


@pytest.mark.parametrize(
    ("ours", "wire"),
    [
        (TaskState, task_pb2.TaskState),
        (AttemptOutcome, task_pb2.AttemptOutcome),
        (Outcome, lease_service_pb2.Outcome),
        (StopRule, queue_pb2.StopRule),
    ],
)
def test_enumerations_have_the_numbers_of_the_wire_api(ours: type[IntEnum], wire):
    named = dict(wire.items())
    (prefix,) = {name.removesuffix("UNSPECIFIED") for name, number in named.items() if number == 0}
    assert {f"{prefix}{member.name}": member.value for member in ours} == {
        name: number for name, number in named.items() if number != 0
    }


@pytest.mark.parametrize("value", [RetryPolicy(), RateLimits(), QueuePolicy(), Queue("q", QueuePolicy(), False, 0, 0)])
def test_policies_and_queues_cannot_be_changed_in_place(value):
    name = next(iter(value.__slots__))
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, None)
    assert hash(value) == hash(value)


def test_a_plain_task_needs_only_uid_queue_and_body():
    task = NewTask(b"u" * 16, "default", b"body")
    assert task[3:] == (None, None, 0, 0, "", "", None, None)
