"""What crosses from the wire to the model and back."""

import base64

import protovalidate
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from adjourn.v1 import lease_service_pb2, queue_pb2, task_pb2, task_service_pb2
from adjourn_service import names
from adjourn_service.errors import InvalidField, PageTokenInvalid, PayloadTooLarge
from adjourn_service.model import (
    DAY_US,
    DEFAULT_QUEUE,
    SECOND_US,
    Attempt,
    AttemptOutcome,
    LeasedTask,
    Outcome,
    Queue,
    QueuePolicy,
    RateLimits,
    RetryPolicy,
    Settlement,
    StopRule,
    TaskError,
    TaskFilter,
    TaskRecord,
    TaskState,
)
from adjourn_service.rpc import convert
from tests.factories import make_uid

NOW = 1_800_000_000_000_000
LIMIT = 32 * 1024
UID = make_uid(NOW, 1)

AGES = Duration(seconds=1 << 60)
"""More than protobuf allows a duration to be, and more than CEL can read."""


def item(*, parent="", task_id="", request_id=None, **task):
    return task_service_pb2.CreateTaskRequest(
        parent=parent,
        task=task_pb2.Task(**task),
        task_id=task_id,
        request_id=names.format_uid(UID) if request_id is None else request_id,
    )


def read(*items, limit=LIMIT):
    return convert.new_tasks(task_service_pb2.BatchCreateTasksRequest(requests=items), limit, NOW)


def read_one(request):
    creates = read(request)
    assert not creates.refusals
    (task,) = creates.tasks
    return task


def refused(creates):
    return {index: list(error.violations) for index, error in creates.refusals.items()}


# --- moments and spans


@given(st.integers(0, 1 << 60))
def test_a_span_goes_to_the_wire_and_back_to_the_microsecond(span_us):
    message = Duration()
    convert.set_duration(message, span_us)
    assert convert.duration_us(message) == span_us
    assert 0 <= message.nanos < 10**9


@given(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_a_moment_goes_to_the_wire_and_back_to_the_microsecond(at):
    message = Timestamp()
    convert.set_timestamp(message, at)
    assert convert.timestamp_us(message) == at
    assert message.ToDatetime()  # Refuses nanos that are none.


def test_no_moment_stays_unset():
    status = task_pb2.TaskStatus()
    convert.set_timestamp(status.end_time, None)
    assert not status.HasField("end_time")


# --- creates


def test_a_plain_task_is_its_own_body():
    request = item(payload=b"x", callable="app.send")
    task = read_one(request)
    assert (task.queue, task.uid) == (DEFAULT_QUEUE, UID)
    assert task_pb2.Task.FromString(task.body) == request.task


def test_options_become_what_the_store_must_understand():
    task = read_one(
        item(
            parent="queues/mail",
            task_id="welcome-42",
            payload=b"x",
            eta=Timestamp(seconds=NOW // SECOND_US + 60),
            priority=-5,
            tag="t",
            key="k",
            retain=Duration(seconds=9),
            retry_policy=queue_pb2.RetryPolicy(max_attempts=3),
        )
    )
    assert (task.queue, task.name) == ("mail", "welcome-42")
    assert (task.eta_at, task.countdown_us) == (NOW + 60 * SECOND_US, 0)
    assert (task.priority, task.tag, task.key, task.retain_us) == (-5, "t", "k", 9 * SECOND_US)
    assert task.retry == RetryPolicy(max_attempts=3)


def test_a_retention_of_zero_is_not_the_queue_s():
    assert read_one(item(payload=b"x", retain=Duration())).retain_us == 0
    assert read_one(item(payload=b"x", tag="t")).retain_us is None


def test_the_body_holds_the_producer_s_fields_alone():
    status = task_pb2.TaskStatus(attempt_count=7)
    task = read_one(
        item(name="n", uid="u", status=status, countdown=Duration(seconds=3), headers={"h": "v"}, payload=b"x")
    )
    assert task.countdown_us == 3 * SECOND_US
    assert task_pb2.Task.FromString(task.body) == task_pb2.Task(headers={"h": "v"}, payload=b"x")


def test_a_plain_task_that_names_itself_is_not_believed():
    task = read_one(item(name="n", uid="u", payload=b"x"))
    assert task_pb2.Task.FromString(task.body) == task_pb2.Task(payload=b"x")


def test_items_of_a_batch_are_told_apart():
    creates = read(item(payload=b"0"), item(priority=2000), item(payload=b"2"), item(tag="x" * 501), item(tag="4"))
    assert refused(creates) == {1: ["requests[1].task.priority"], 3: ["requests[3].task.tag"]}
    assert creates.indices == [0, 2, 4]
    assert [task.tag for task in creates.tasks] == ["", "", "4"]


def test_an_item_that_cel_cannot_evaluate_is_refused_alone():
    poison = item(retry_policy=queue_pb2.RetryPolicy(min_backoff=AGES, max_backoff=Duration(seconds=1)))
    creates = read(item(payload=b"x"), poison, item(priority=2000))
    assert refused(creates) == {1: ["requests[1].task.retry_policy.min_backoff"], 2: ["requests[2].task.priority"]}


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (item(request_id="", payload=b"x"), "request_id"),
        (item(request_id="A" * 36, payload=b"x"), "request_id"),
        (item(parent="queues/a b", payload=b"x"), "parent"),
        (item(), "task"),
        (item(eta=Timestamp(seconds=1), countdown=Duration()), "task.eta"),
        (item(eta=Timestamp(seconds=(NOW + 366 * DAY_US) // SECOND_US + 1)), "task.eta"),
        (item(payload=b"x", callable="c" * 501), "task.callable"),
    ],
)
def test_an_item_that_breaks_a_rule_is_refused_by_its_field(bad, field):
    if field == "task":
        bad.ClearField("task")
    assert refused(read(bad)) == {0: [f"requests[0].{field}"]}


@pytest.mark.parametrize("options", [{}, {"tag": "t"}])
def test_a_payload_is_taken_up_to_the_inline_limit_with_options_or_without(options):
    creates = read(item(payload=b"123", **options), item(payload=b"1234", **options), limit=3)
    assert creates.indices == [0]
    assert isinstance(creates.refusals[1], PayloadTooLarge)


def test_a_create_without_a_request_id_is_given_one():
    request = item(request_id="", payload=b"x")
    first, second = (convert.new_task(request, LIMIT, NOW) for _ in range(2))
    assert len(first.uid) == 16
    assert first.uid != second.uid


@pytest.mark.parametrize("count", [0, convert.BATCH_MAX + 1])
def test_a_batch_of_none_or_too_many_is_refused_as_a_whole(count):
    with pytest.raises(InvalidField) as error:
        read(*[item(priority=2000)] * count)
    assert list(error.value.violations) == ["requests"]


def test_the_limits_that_are_checked_by_hand_are_those_of_the_proto():
    def valid(*items):
        return not protovalidate.collect_violations(task_service_pb2.BatchCreateTasksRequest(requests=items))

    assert valid(*[item(payload=b"x")] * convert.BATCH_MAX)
    assert not valid(*[item(payload=b"x")] * (convert.BATCH_MAX + 1))
    assert valid(item(callable="c" * convert.CALLABLE_MAX))
    assert not valid(item(callable="c" * (convert.CALLABLE_MAX + 1)))


near_ids = st.one_of(
    st.just(names.format_uid(UID)),
    st.sampled_from(["", names.format_uid(UID).upper(), names.format_uid(UID) + "\n", names.format_uid(bytes(16))]),
)
near_parents = st.sampled_from(
    ["", "queues/a", "queues/-", "queues/", "queues/a\n", "queues/é", f"queues/{'q' * 101}", "a"]
)


@given(
    parent=near_parents,
    request_id=near_ids,
    task_id=st.sampled_from(["", "", "n", "n m", "n" * 501]),
    payload=st.sampled_from([b"", b"x", bytes(LIMIT + 1)]),
    called=st.sampled_from(["", "app.send", "c" * 500, "c" * 501, "é" * 500, "\U0001f600" * 500]),
    more=st.sampled_from([{}, {}, {}, {"priority": 1001}, {"headers": {"a b": "c"}}, {"tag": "x" * 501}, {"uid": "u"}]),
)
def test_what_is_taken_without_protovalidate_is_what_it_would_take(parent, request_id, task_id, payload, called, more):
    request = item(parent=parent, request_id=request_id, task_id=task_id, payload=payload, callable=called, **more)
    valid = not protovalidate.collect_violations(request)
    creates = read(request)
    if creates.tasks:
        assert valid
    else:
        (error,) = creates.refusals.values()
        assert not valid or isinstance(error, PayloadTooLarge) or not request_id


# --- leases


def test_a_lease_carries_the_task_and_its_names():
    body = task_pb2.Task(payload=b"p", headers={"h": "v"})
    message = task_pb2.Lease()
    convert.fill_lease(
        message, LeasedTask("l.1", "q", UID, "n", 2, 1_500_000, True, body.SerializeToString(), 7 * SECOND_US)
    )
    body.name, body.uid, body.deadline.seconds = "queues/q/tasks/n", names.format_uid(UID), 7
    assert message == task_pb2.Lease(
        lease_id="l.1", task=body, attempt=2, duration=Duration(seconds=1, nanos=500_000_000), keep_result=True
    )


def test_a_task_s_own_deadline_wins_over_its_queue_s():
    body = task_pb2.Task(deadline=Duration(seconds=3)).SerializeToString()
    message = task_pb2.Lease()
    convert.fill_lease(message, LeasedTask("l", "q", UID, None, 1, SECOND_US, False, body, 7 * SECOND_US))
    assert message.task.deadline == Duration(seconds=3)
    assert message.task.name == f"queues/q/tasks/{names.format_uid(UID)}"


def test_a_settlement_without_error_and_delay_has_none():
    message = lease_service_pb2.Settlement(lease_id="l", outcome=lease_service_pb2.OUTCOME_RETRY)
    assert convert.settlement(message) == Settlement("l", Outcome.RETRY)
    message.delay.SetInParent()
    message.error.type = "ValueError"
    assert convert.settlement(message) == Settlement("l", Outcome.RETRY, b"", TaskError("ValueError"), 0)


# --- tasks as they are read

RECORD = TaskRecord(
    UID,
    "q",
    None,
    TaskState.DEAD,
    priority=0,
    tag="",
    key="",
    body=task_pb2.Task(payload=b"p", callable="app.send").SerializeToString(),
    created_at=NOW,
    due_at=NOW + 1,
    attempts=1,
    result=b"r",
    history=(Attempt(1, "w", NOW, NOW + 2, AttemptOutcome.FAILED, TaskError("E", "m", "trace")),),
)


def test_the_full_view_has_everything():
    task = convert.task_to_proto(RECORD, task_pb2.TASK_VIEW_FULL)
    assert (task.payload, task.status.result, task.status.attempts[0].error.traceback) == (b"p", b"r", "trace")


def test_the_basic_view_leaves_out_payload_result_and_tracebacks():
    task = convert.task_to_proto(RECORD, task_pb2.TASK_VIEW_BASIC)
    assert (task.payload, task.status.result, task.status.attempts[0].error.traceback) == (b"", b"", "")
    assert (task.callable, task.status.attempts[0].error.message) == ("app.send", "m")
    assert task.status.state == task_pb2.TASK_STATE_DEAD
    assert not task.status.HasField("end_time")


# --- queues

spans = st.integers(0, 2_592_000_000_000)
retries = st.builds(
    lambda low, more, **fields: RetryPolicy(min_backoff_us=low, max_backoff_us=low + more, **fields),
    st.integers(0, DAY_US),
    st.integers(0, DAY_US),
    max_attempts=st.integers(0, 1_000_000),
    max_age_us=spans,
    max_doublings=st.integers(0, 1000),
    stop=st.sampled_from(StopRule),
    jitter=st.floats(0, 1),
)
limits = st.builds(
    RateLimits,
    st.none() | st.floats(0.001, 1e6),
    st.none() | st.integers(1, 1_000_000),
    st.none() | st.integers(1, 1_000_000),
)
policies = st.builds(
    QueuePolicy, retries, limits, st.integers(SECOND_US, DAY_US // 2), spans, spans, spans, st.none() | spans
)


@given(policies)
def test_a_queue_s_policy_goes_to_the_wire_and_back(policy):
    queue = Queue("q", policy, paused=False, created_at=NOW, updated_at=NOW)
    assert convert.queue_policy(convert.queue_to_proto(queue)) == policy


def test_a_queue_that_says_nothing_has_every_default():
    assert convert.queue_policy(queue_pb2.Queue(name="queues/q")) == QueuePolicy()


def test_an_update_changes_what_the_mask_names_and_nothing_else():
    policy = QueuePolicy(RetryPolicy(max_attempts=7, max_doublings=3), lease_duration_us=9 * SECOND_US)
    queue = Queue("q", policy, paused=False, created_at=NOW, updated_at=NOW)
    message = queue_pb2.Queue(retry_policy=queue_pb2.RetryPolicy(max_attempts=2, max_doublings=1))
    mask = FieldMask(paths=["retry_policy.max_attempts", "lease_duration"])
    updated = convert.updated_policy(queue, message, mask)
    assert updated == QueuePolicy(RetryPolicy(max_attempts=2, max_doublings=3))


@pytest.mark.parametrize("mask", [None, FieldMask()])
def test_without_a_mask_or_with_an_empty_one_what_is_set_is_taken_over(mask):
    queue = Queue("q", QueuePolicy(tombstone_ttl_us=5), paused=False, created_at=NOW, updated_at=NOW)
    updated = convert.updated_policy(queue, queue_pb2.Queue(lease_duration=Duration(seconds=5)), mask)
    assert updated == QueuePolicy(lease_duration_us=5 * SECOND_US, tombstone_ttl_us=5)


@pytest.mark.parametrize(
    "path", ["name", "state", "create_time", "retry_policy.nope", "lease_duration.seconds", "*", ""]
)
def test_a_path_that_is_not_a_field_to_update_is_refused(path):
    queue = Queue("q", QueuePolicy(), paused=False, created_at=NOW, updated_at=NOW)
    with pytest.raises(InvalidField):
        convert.updated_policy(queue, queue_pb2.Queue(), FieldMask(paths=[path]))


# --- pages


@pytest.mark.parametrize("cursor", [0, 12, "a-queue"])
def test_a_page_token_gives_back_its_cursor_to_the_same_list_alone(cursor):
    wanted = TaskFilter(queue="q", state=TaskState.DEAD)
    token = convert.page_token(cursor, wanted)
    assert convert.page_cursor(token, TaskFilter(queue="q", state=TaskState.DEAD)) == str(cursor)
    with pytest.raises(PageTokenInvalid):
        convert.page_cursor(token, TaskFilter(queue="q"))


def test_there_is_no_token_after_the_last_page_and_none_before_the_first():
    assert convert.page_token(None, "x") == ""
    assert convert.page_cursor("", "x") is None


@given(st.text(min_size=1) | st.binary(min_size=1).map(lambda noise: base64.urlsafe_b64encode(noise).decode()))
def test_a_page_token_that_is_not_ours_is_refused(token):
    with pytest.raises(PageTokenInvalid):
        convert.page_cursor(token, "x")
