"""The short way that most creates take past the rules must never take what the rules refuse."""

import copy

import protovalidate
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from adjourn.v1 import queue_pb2, task_pb2, task_service_pb2
from adjourn_service import names
from adjourn_service.errors import ServiceError
from adjourn_service.rpc import convert
from adjourn_service.rpc.validation import validate
from tests.factories import make_uid

INLINE_LIMIT = 64
NOW = 1_700_000_000_000_000
UID = names.format_uid(make_uid(NOW, 1))

texts = st.one_of(
    st.text(max_size=8),
    # Characters of one to four bytes: a limit counts characters, not bytes or halves of surrogate pairs.
    st.builds(lambda character, length: character * length, st.sampled_from("xé€😀"), st.sampled_from([499, 500, 501])),
)

parents = st.one_of(
    st.sampled_from(["", "queues/default", "queues/-", "queues/", "queues", "default", "queues/a/", "/queues/a"]),
    st.builds(lambda length: "queues/" + "q" * length, st.sampled_from([0, 1, 99, 100, 101])),
    st.builds(lambda tail: "queues/" + tail, st.text("aZ09-_ .\n\u0660é", max_size=5)),
    st.text(max_size=12),
)


def _changed(index, character):
    return UID[:index] + character + UID[index + 1 :]


request_ids = st.one_of(
    st.just(UID),
    st.sampled_from(
        ["", UID.upper(), UID + "\n", UID + " ", " " + UID, UID.replace("-", ""), "{" + UID + "}", UID[:-1]]
    ),
    st.builds(_changed, st.integers(0, 35), st.sampled_from("0123456789abcdefABCDEFg-\u0660")),
)

task_ids = st.one_of(st.just(""), st.text("aZ09-_. \n\u0660é", max_size=4), st.sampled_from(["x" * 500, "x" * 501]))

headers = st.dictionaries(st.text("aZ0._- é", max_size=3), st.sampled_from(["", "x" * 2000, "x" * 2001]), max_size=2)
durations = st.builds(Duration, seconds=st.sampled_from([-1, 0, 1, 31_622_400, 31_622_401, 1 << 60]))
policies = st.builds(queue_pb2.RetryPolicy, max_attempts=st.sampled_from([-1, 0, 5]), min_backoff=durations)

options = {
    "callable": texts,
    "name": texts,
    "uid": texts,
    "tag": texts,
    "headers": headers,
    "priority": st.sampled_from([-1001, 0, 1000, 1001]),
    "countdown": durations,
    "retain": durations,
    "retry_policy": policies,
    "status": st.builds(task_pb2.TaskStatus, attempt_count=st.integers(0, 3)),
}

payloads = st.builds(bytes, st.sampled_from([0, 1, INLINE_LIMIT - 1, INLINE_LIMIT, INLINE_LIMIT + 1]))

tasks = st.one_of(
    # Mostly what takes the short way, or nearly does.
    st.builds(task_pb2.Task, payload=payloads, callable=texts),
    st.builds(task_pb2.Task, name=texts, uid=texts, payload=payloads, callable=texts),
    st.fixed_dictionaries({}, optional={"payload": payloads, **options}).map(lambda fields: task_pb2.Task(**fields)),
)


@st.composite
def creates(draw):
    """Return a create, most of whose parts are usually as they should be."""
    request = task_service_pb2.CreateTaskRequest(
        parent=draw(st.just("queues/default") | parents),
        request_id=draw(st.just(UID) | request_ids),
        task_id=draw(st.just("") | task_ids),
    )
    if draw(st.integers(0, 9)):
        request.task.CopyFrom(draw(tasks))
    return request


def _slowly(request):
    """Return what the long way makes of a create, as one of a batch; a refusal as its reason and metadata."""
    request = copy.deepcopy(request)
    try:
        validate(request)
        if not request.request_id:
            return "INVALID_FIELD", {}
        return convert.new_task(request, INLINE_LIMIT, NOW)
    except ServiceError as refused:
        return refused.reason, refused.metadata


@given(st.lists(creates(), min_size=1, max_size=4))
def test_a_batch_holds_exactly_what_the_long_way_makes_of_each_item(requests):
    batch = task_service_pb2.BatchCreateTasksRequest(requests=requests)
    made = convert.new_tasks(batch, INLINE_LIMIT, NOW)
    items = {
        **dict(zip(made.indices, made.tasks, strict=True)),
        **{index: (refused.reason, refused.metadata) for index, refused in made.refusals.items()},
    }
    assert items == {index: _slowly(request) for index, request in enumerate(requests)}
    assert list(made.indices) == sorted(made.indices)


@given(st.lists(creates(), min_size=1, max_size=4))
def test_what_a_batch_takes_breaks_no_rule(requests):
    batch = task_service_pb2.BatchCreateTasksRequest(requests=requests)
    made = convert.new_tasks(copy.deepcopy(batch), INLINE_LIMIT, NOW)
    for index in made.indices:
        assert not protovalidate.collect_violations(batch.requests[index])


@given(creates())
def test_what_is_handed_out_is_what_was_created(request):
    batch = task_service_pb2.BatchCreateTasksRequest(requests=[request])
    for new in convert.new_tasks(copy.deepcopy(batch), INLINE_LIMIT, NOW).tasks:
        task = task_pb2.Task.FromString(new.body)
        given_task = request.task
        assert (task.payload, task.callable) == (given_task.payload, given_task.callable)
        assert dict(task.headers) == dict(given_task.headers)
        assert (task.name, task.uid, task.HasField("status")) == ("", "", False)
