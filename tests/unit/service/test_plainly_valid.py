"""The quick way to accept a create's options never takes what the rules of the proto refuse, and takes the usual."""

from itertools import product

import pytest
from google.protobuf.duration_pb2 import Duration

from adjourn.v1 import queue_pb2, task_pb2
from adjourn_service.errors import InvalidField
from adjourn_service.rpc.validation import plainly_valid, validate

DAY = 86_400


def around(*bounds):
    """Return the bounds, their neighbours, and what is far outside."""
    return sorted({bound + step for bound in (*bounds, -(1 << 30), 1 << 30) for step in (-1, 0, 1)})


def spans(*bounds):
    nanos = (0, 1, -1, 999_999_999, 10**9)
    return [Duration(seconds=seconds, nanos=rest) for seconds in (*around(*bounds), 1 << 60) for rest in nanos]


TEXTS = [character * length for character in "xé😀" for length in (1, 500, 501)]

# Every field by itself: beside a field that is at fault another's rule would not be noticed.
POLICIES = {
    "max_attempts": around(0, 1_000_000),
    "max_age": spans(0, 365 * DAY),
    "min_backoff": spans(0, 30 * DAY),
    "max_backoff": spans(0, 30 * DAY),
    "max_doublings": around(0, 1000),
    "stop": range(-1, 4),
    "jitter": [-0.1, 0.0, 0.5, 1.0, 1.1, float("nan"), float("inf")],
}

TASKS = {
    "name": ["n"],
    "uid": ["u"],
    "payload": [b"x", bytes(1 << 20), bytes((1 << 20) + 1)],
    "callable": TEXTS,
    "headers": [
        *({name: "v"} for name in ("a", "A.b_c-9", "", "a b", "a\n", "é", "x" * 100, "x" * 101)),
        *({"a": value} for value in ("", "v" * 2000, "v" * 2001, "😀" * 2000, "😀" * 2001)),
        *({f"h{index}": "" for index in range(number)} for number in (64, 65)),
        {"good": "", "not good": ""},
    ],
    "countdown": spans(0, 366 * DAY),
    "priority": around(-1000, 1000),
    "tag": TEXTS,
    "key": TEXTS,
    "deadline": spans(1, 30 * DAY),
    "retain": spans(0, 30 * DAY),
    "retry_policy": [
        *(queue_pb2.RetryPolicy(**{name: value}) for name, values in POLICIES.items() for value in values),
        *(
            queue_pb2.RetryPolicy(min_backoff=low, max_backoff=high)
            for low, high in product([Duration(), Duration(seconds=2), Duration(seconds=1 << 60)], repeat=2)
        ),
    ],
}


def keeps_to_the_rules(task):
    try:
        validate(task)
    except InvalidField:
        return False
    return True


@pytest.mark.parametrize("field", TASKS)
def test_what_is_plainly_valid_keeps_to_the_rules(field):
    tasks = [task_pb2.Task(**{field: value}) for value in TASKS[field]]
    assert [task for task in tasks if plainly_valid(task.ListFields()) and not keeps_to_the_rules(task)] == []


@pytest.mark.parametrize("field", [field for field in TASKS if field not in ("name", "uid")])
def test_of_every_field_something_is_plainly_valid(field):
    assert any(plainly_valid(task_pb2.Task(**{field: value}).ListFields()) for value in TASKS[field])


def test_one_field_in_doubt_is_doubt_enough():
    task = task_pb2.Task(payload=b"x", tag="x" * 501, key="k")
    assert not plainly_valid(task.ListFields())


def test_the_usual_options_are_plainly_valid():
    task = task_pb2.Task(
        payload=b"x",
        callable="app.send",
        headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        countdown=Duration(seconds=60),
        priority=-1000,
        tag="t",
        key="k",
        deadline=Duration(seconds=60),
        retry_policy=queue_pb2.RetryPolicy(
            max_attempts=5, min_backoff=Duration(nanos=500), jitter=0.5, stop=queue_pb2.STOP_RULE_ALL
        ),
        retain=Duration(seconds=60),
    )
    assert plainly_valid(task.ListFields())
