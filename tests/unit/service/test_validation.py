"""What is said of requests that break the rules of the proto files, beyond single fields (see e2e/test_edge.py)."""

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from adjourn.v1 import queue_pb2, queue_service_pb2, task_pb2, task_service_pb2
from adjourn_service.errors import InvalidField
from adjourn_service.rpc.validation import validate

AGES = Duration(seconds=1 << 60)
"""More than protobuf allows a duration to be, and more than CEL can read."""


def violations(message):
    with pytest.raises(InvalidField) as refused:
        validate(message)
    return refused.value.violations


def create(**task):
    return task_service_pb2.CreateTaskRequest(task=task_pb2.Task(**task))


def test_a_message_that_keeps_to_the_rules_passes():
    validate(create(payload=b"x"))


def test_every_violation_is_told_by_its_path():
    task = task_pb2.Task(priority=1001, tag="x" * 501, headers={"a b": "x", "c": "y" * 2001})
    request = task_service_pb2.CreateTaskRequest(parent="default", task=task)
    assert violations(request).keys() == {
        "parent",
        "task.priority",
        "task.tag",
        'task.headers["a b"]',
        'task.headers["c"]',
    }


def test_a_name_with_a_line_break_at_its_end_is_no_name():
    assert violations(queue_service_pb2.GetQueueRequest(name="queues/a\n")).keys() == {"name"}


def test_a_rule_of_a_whole_message_is_told_by_the_message_s_path():
    policy = queue_pb2.RetryPolicy(min_backoff=Duration(seconds=2), max_backoff=Duration(seconds=1))
    request = queue_service_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name="queues/a", retry_policy=policy))
    assert violations(request) == {"queue.retry_policy": "max_backoff must not be less than min_backoff"}


@pytest.mark.parametrize("seconds", [1 << 60, -(1 << 60), (1 << 63) - 1, 10**12])
def test_a_duration_that_cel_cannot_read_is_a_violation_of_its_field(seconds):
    policy = queue_pb2.RetryPolicy(min_backoff=Duration(seconds=seconds), max_backoff=Duration(seconds=1))
    assert "task.retry_policy.min_backoff" in violations(create(retry_policy=policy))


def test_a_path_is_put_before_those_of_the_fields():
    with pytest.raises(InvalidField) as refused:
        validate(create(priority=2000, tag="x" * 501), "requests[3].")
    assert refused.value.violations.keys() == {"requests[3].task.priority", "requests[3].task.tag"}


@pytest.mark.parametrize("timestamp", [Timestamp(seconds=1 << 60), Timestamp(nanos=-1), Timestamp(nanos=10**9)])
def test_what_is_no_moment_is_a_violation_of_its_field(timestamp):
    assert violations(create(eta=timestamp)) == {"task.eta": "is not a valid timestamp"}


@pytest.mark.parametrize("duration", [Duration(nanos=10**9), Duration(seconds=1, nanos=-1), AGES])
def test_what_is_no_span_is_a_violation_of_its_field(duration):
    assert violations(create(countdown=duration)) == {"task.countdown": "is not a valid duration"}
