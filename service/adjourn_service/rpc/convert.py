"""Between the wire and the model; the only module that sees both.

The functions on the path of every task are written for speed: a field of a message costs a tenth of a microsecond to
touch, and a task's whole budget in the service is a few microseconds.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, cast

import uuid_utils
from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from adjourn.v1 import lease_service_pb2, queue_pb2, task_pb2, task_service_pb2
from adjourn_service import names
from adjourn_service.errors import InvalidField, PageTokenInvalid, PayloadTooLarge, ServiceError
from adjourn_service.model import (
    DAY_US,
    DEFAULT_QUEUE,
    SECOND_US,
    Attempt,
    LeasedTask,
    NewTask,
    Outcome,
    Queue,
    QueuePolicy,
    QueueStats,
    RateLimits,
    RetryPolicy,
    Settlement,
    StopRule,
    TaskError,
    TaskFilter,
    TaskRecord,
    TaskState,
)
from adjourn_service.rpc.validation import plainly_valid, validate

ETA_AHEAD_MAX_US: Final = 366 * DAY_US

BATCH_MAX: Final = 1000
"""As the wire API says of BatchCreateTasksRequest.requests."""

CALLABLE_MAX: Final = 500
"""As the wire API says of Task.callable."""

_NOT_KEPT: Final[Sequence[Literal["name", "uid", "countdown", "status"]]] = ("name", "uid", "countdown", "status")
"""Fields of Task that are not the producer's, or are spent with the create."""

_TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,500}")
_PAYLOAD: Final = task_pb2.Task.PAYLOAD_FIELD_NUMBER
_CALLABLE: Final = task_pb2.Task.CALLABLE_FIELD_NUMBER


# --- moments and spans


def duration_us(duration: Duration) -> int:
    """Return a span in microseconds; an unset one is 0."""
    return duration.seconds * SECOND_US + duration.nanos // 1000


def set_duration(duration: Duration, span_us: int) -> None:
    """Write a span into a message."""
    duration.seconds, rest = divmod(span_us, SECOND_US)
    duration.nanos = rest * 1000


def set_timestamp(timestamp: Timestamp, at: int | None) -> None:
    """Write a moment into a message; None leaves it unset."""
    if at is not None:
        timestamp.seconds, rest = divmod(at, SECOND_US)
        timestamp.nanos = rest * 1000


def timestamp_us(timestamp: Timestamp) -> int:
    """Return a moment in microseconds."""
    return timestamp.seconds * SECOND_US + timestamp.nanos // 1000


# --- creating tasks


class Creates(NamedTuple):
    """What a batch of create requests holds: the tasks with the index of each, and what is refused at the edge."""

    tasks: list[NewTask]
    indices: list[int]
    refusals: dict[int, ServiceError]


def new_tasks(batch: task_service_pb2.BatchCreateTasksRequest, inline_limit: int, now: int) -> Creates:
    """Read a batch of creates, and check it. `inline_limit` bounds a payload, in bytes.

    Raises: InvalidField if there are too many or none."""
    requests = batch.requests
    if not 1 <= len(requests) <= BATCH_MAX:
        # Said before anything is looked at: a request of 16 MiB has room for millions of empty items.
        raise InvalidField({"requests": f"must hold 1 to {BATCH_MAX:,} items, not {len(requests):,}"})
    creates = Creates([], [], {})
    parents: dict[str, str | None] = {"": DEFAULT_QUEUE}
    for index, request in enumerate(requests):
        task = request.task
        present = task.ListFields()
        uid = names.parse_uid(request.request_id)
        parent = request.parent
        if parent not in parents:
            parents[parent] = _queue_of(parent)
        queue = parents[parent]
        try:
            if (
                uid is None
                or queue is None
                or request.task_id
                or not present
                or present[0][0].number < _PAYLOAD
                or present[-1][0].number > _CALLABLE
                or len(task.callable) > CALLABLE_MAX
            ):
                path = f"requests[{index}]."
                if uid is None or queue is None or not (present and _named(request) and plainly_valid(present)):
                    validate(request, path)
                if not request.request_id:
                    raise InvalidField({f"{path}request_id": "is required in a batch; make a UUIDv7 for each create"})
                new = new_task(request, inline_limit, now, path)
            elif len(task.payload) > inline_limit:
                raise PayloadTooLarge(len(task.payload), inline_limit)
            else:
                # A payload and what it calls: the usual task. What was looked at are all the rules it could break.
                new = NewTask(uid, queue, task.SerializeToString())
        except ServiceError as refused:
            creates.refusals[index] = refused
        else:
            creates.tasks.append(new)
            creates.indices.append(index)
    return creates


def _named(request: task_service_pb2.CreateTaskRequest) -> bool:
    return not request.task_id or _TASK_ID.fullmatch(request.task_id) is not None


def _queue_of(parent: str) -> str | None:
    try:
        queue = names.parse_queue_name(parent)
    except ValueError:
        return None
    return None if queue == names.ANY_QUEUE else queue


def new_task(request: task_service_pb2.CreateTaskRequest, inline_limit: int, now: int, path: str = "") -> NewTask:
    """Read one create, whose fields have been validated. A missing request_id is made here.

    Raises: InvalidField, PayloadTooLarge."""
    task = request.task
    if len(task.payload) > inline_limit:
        raise PayloadTooLarge(len(task.payload), inline_limit)
    given = {field.name: value for field, value in task.ListFields()}
    if "eta" in given and "countdown" in given:
        raise InvalidField({f"{path}task.eta": "excludes countdown; give one of the two"})
    eta_at = timestamp_us(given["eta"]) if "eta" in given else None
    if eta_at is not None and eta_at > now + ETA_AHEAD_MAX_US:
        raise InvalidField({f"{path}task.eta": "is more than 366 days ahead"})
    countdown_us = duration_us(given["countdown"]) if "countdown" in given else 0
    uid = names.parse_uid(request.request_id) if request.request_id else uuid_utils.uuid7().bytes
    assert uid is not None
    for field in _NOT_KEPT:
        if field in given:
            task.ClearField(field)
    return NewTask(
        uid,
        names.parse_queue_name(request.parent) if request.parent else DEFAULT_QUEUE,
        task.SerializeToString(),
        name=request.task_id or None,
        eta_at=eta_at,
        countdown_us=countdown_us,
        priority=given.get("priority", 0),
        tag=given.get("tag", ""),
        key=given.get("key", ""),
        retain_us=duration_us(given["retain"]) if "retain" in given else None,
        retry=retry_policy(given["retry_policy"]) if "retry_policy" in given else None,
    )


# --- leases


def fill_lease(message: task_pb2.Lease, leased: LeasedTask) -> None:
    """Write a leased task into an empty Lease message."""
    task = message.task
    task.MergeFromString(leased.body)
    uid = leased.uid.hex()
    task.uid = uid = f"{uid[:8]}-{uid[8:12]}-{uid[12:16]}-{uid[16:20]}-{uid[20:]}"
    task.name = f"queues/{leased.queue}/tasks/{leased.name or uid}"
    message.lease_id = leased.lease_id
    message.attempt = leased.attempt
    duration = message.duration
    duration.seconds = leased.duration_us // SECOND_US
    if leased.duration_us % SECOND_US:
        duration.nanos = leased.duration_us % SECOND_US * 1000
    if leased.keep_result:
        message.keep_result = True
    if leased.task_deadline_us is not None and not task.HasField("deadline"):
        set_duration(task.deadline, leased.task_deadline_us)


def settlement(message: lease_service_pb2.Settlement) -> Settlement:
    """Read how a lease ended, from a validated message."""
    error = message.error
    return Settlement(
        message.lease_id,
        Outcome(message.outcome),
        message.result,
        TaskError(error.type, error.message, error.traceback) if message.HasField("error") else None,
        duration_us(message.delay) if message.HasField("delay") else None,
    )


# --- tasks as they are read


def task_to_proto(record: TaskRecord, view: task_pb2.TaskView.ValueType) -> task_pb2.Task:
    """Return a stored task as a resource."""
    task = task_pb2.Task.FromString(record.body)
    task.name = names.task_name(record.queue, record.name, record.uid)
    task.uid = names.format_uid(record.uid)
    full = view == task_pb2.TASK_VIEW_FULL
    if not full:
        task.ClearField("payload")
    fill_status(task.status, record, full=full)
    return task


def fill_status(status: task_pb2.TaskStatus, record: TaskRecord, *, full: bool) -> None:
    """Write what has become of a task into an empty message."""
    status.state = task_pb2.TaskState.ValueType(record.state)
    status.attempt_count = record.attempts
    status.worker_id = record.worker_id
    set_timestamp(status.create_time, record.created_at)
    set_timestamp(status.eta, record.due_at)
    set_timestamp(status.first_attempt_time, record.first_attempt_at)
    set_timestamp(status.lease_expire_time, record.lease_deadline_at)
    set_timestamp(status.end_time, record.ended_at)
    set_timestamp(status.expire_time, record.expires_at)
    if full:
        status.result = record.result
    for attempt in record.history:
        _fill_attempt(status.attempts.add(), attempt, full=full)


def _fill_attempt(message: task_pb2.Attempt, attempt: Attempt, *, full: bool) -> None:
    message.number = attempt.number
    message.worker_id = attempt.worker_id
    message.outcome = task_pb2.AttemptOutcome.ValueType(attempt.outcome)
    set_timestamp(message.lease_time, attempt.leased_at)
    set_timestamp(message.end_time, attempt.ended_at)
    if attempt.error is not None:
        message.error.type = attempt.error.type
        message.error.message = attempt.error.message
        message.error.traceback = attempt.error.traceback if full else ""


def task_filter(request: task_service_pb2.ListTasksRequest) -> TaskFilter:
    """Read what a list is to hold."""
    queue = names.parse_queue_name(request.parent)
    return TaskFilter(
        None if queue == names.ANY_QUEUE else queue,
        TaskState(request.state) if request.state else None,
        request.tag,
        request.key,
        timestamp_us(request.created_from) if request.HasField("created_from") else None,
        timestamp_us(request.created_until) if request.HasField("created_until") else None,
    )


# --- queues


def retry_policy(message: queue_pb2.RetryPolicy) -> RetryPolicy:
    """Read a retry policy, defaults filled in."""
    default = RetryPolicy()
    min_backoff_us = duration_us(message.min_backoff) if message.HasField("min_backoff") else None
    max_backoff_us = duration_us(message.max_backoff) if message.HasField("max_backoff") else None
    # With only one of the two given, the other gives way: App Engine's rule for queue.yaml.
    if max_backoff_us is None:
        max_backoff_us = max(default.max_backoff_us, min_backoff_us or 0)
    if min_backoff_us is None:
        min_backoff_us = min(default.min_backoff_us, max_backoff_us)
    return RetryPolicy(
        max_attempts=message.max_attempts if message.HasField("max_attempts") else default.max_attempts,
        max_age_us=duration_us(message.max_age),
        min_backoff_us=min_backoff_us,
        max_backoff_us=max_backoff_us,
        max_doublings=message.max_doublings if message.HasField("max_doublings") else default.max_doublings,
        stop=StopRule.ALL if message.stop == queue_pb2.STOP_RULE_ALL else StopRule.ANY,
        jitter=message.jitter,
    )


def queue_policy(message: queue_pb2.Queue) -> QueuePolicy:
    """Read a queue's policy, defaults filled in."""
    default = QueuePolicy()
    limits = message.rate_limits

    def span(field: str, otherwise: Any) -> Any:
        return duration_us(getattr(message, field)) if message.HasField(field) else otherwise  # type: ignore[arg-type]

    return QueuePolicy(
        retry=retry_policy(message.retry_policy),
        rate_limits=RateLimits(
            limits.max_leases_per_second if limits.HasField("max_leases_per_second") else None,
            limits.max_burst_size if limits.HasField("max_burst_size") else None,
            limits.max_concurrent_leases if limits.HasField("max_concurrent_leases") else None,
        ),
        lease_duration_us=span("lease_duration", default.lease_duration_us),
        result_retention_us=span("result_retention", default.result_retention_us),
        dead_letter_retention_us=span("dead_letter_retention", default.dead_letter_retention_us),
        tombstone_ttl_us=span("tombstone_ttl", default.tombstone_ttl_us),
        task_deadline_us=span("task_deadline", None),
    )


def queue_to_proto(queue: Queue) -> queue_pb2.Queue:
    """Return a queue as a resource, every default filled in."""
    policy = queue.policy
    message = queue_pb2.Queue(
        name=names.queue_name(queue.id),
        state=queue_pb2.QUEUE_STATE_PAUSED if queue.paused else queue_pb2.QUEUE_STATE_RUNNING,
    )
    retry = message.retry_policy
    retry.max_attempts = policy.retry.max_attempts
    if policy.retry.max_age_us:
        set_duration(retry.max_age, policy.retry.max_age_us)
    set_duration(retry.min_backoff, policy.retry.min_backoff_us)
    set_duration(retry.max_backoff, policy.retry.max_backoff_us)
    retry.max_doublings = policy.retry.max_doublings
    retry.stop = queue_pb2.StopRule.ValueType(policy.retry.stop)
    retry.jitter = policy.retry.jitter
    limits = policy.rate_limits
    if limits.max_leases_per_second is not None:
        message.rate_limits.max_leases_per_second = limits.max_leases_per_second
    if limits.max_burst_size is not None:
        message.rate_limits.max_burst_size = limits.max_burst_size
    if limits.max_concurrent_leases is not None:
        message.rate_limits.max_concurrent_leases = limits.max_concurrent_leases
    set_duration(message.lease_duration, policy.lease_duration_us)
    set_duration(message.result_retention, policy.result_retention_us)
    set_duration(message.dead_letter_retention, policy.dead_letter_retention_us)
    set_duration(message.tombstone_ttl, policy.tombstone_ttl_us)
    if policy.task_deadline_us is not None:
        set_duration(message.task_deadline, policy.task_deadline_us)
    set_timestamp(message.create_time, queue.created_at)
    set_timestamp(message.update_time, queue.updated_at)
    return message


_UPDATABLE: Final[Mapping[str, Descriptor | None]] = {
    "retry_policy": queue_pb2.RetryPolicy.DESCRIPTOR,
    "rate_limits": queue_pb2.RateLimits.DESCRIPTOR,
    "lease_duration": None,
    "result_retention": None,
    "dead_letter_retention": None,
    "tombstone_ttl": None,
    "task_deadline": None,
}
"""What a mask may name, and what its fields may be named by."""


def updated_policy(queue: Queue, message: queue_pb2.Queue, mask: FieldMask | None) -> QueuePolicy:
    """Return the queue's policy with the fields that the mask names taken from the message.

    Without a mask, or with an empty one, those that are set in the message. A named field that is unset goes back to
    its default. Raises: InvalidField for a path that is none."""
    present = [field.name for field, _ in message.ListFields() if field.name in _UPDATABLE]
    merged: Message = queue_to_proto(queue)
    for path in mask.paths if mask is not None and mask.paths else present:
        outer, dot, inner = path.partition(".")
        nested = _UPDATABLE.get(outer)
        if outer not in _UPDATABLE or (dot and (nested is None or inner not in nested.fields_by_name)):
            raise InvalidField({"update_mask": f"{path!a} is not a field that can be updated"})
        if inner:
            _take_field(getattr(merged, outer), getattr(message, outer), inner)
        else:
            _take_field(merged, message, outer)
    policy = queue_policy(cast("queue_pb2.Queue", merged))
    if policy.retry.max_backoff_us < policy.retry.min_backoff_us:
        raise InvalidField({"queue.retry_policy": "max_backoff must not be less than min_backoff"})
    return policy


def _take_field(target: Message, source: Message, field: str) -> None:
    """Make one field of `target` what it is in `source`, unset included."""
    target.ClearField(field)
    for present, value in source.ListFields():
        if present.name == field:
            target.MergeFrom(type(source)(**{field: value}))


def stats_to_proto(queue: str, stats: QueueStats) -> queue_pb2.QueueStats:
    """Return the counters of a queue as a message."""
    message = queue_pb2.QueueStats(
        name=names.queue_name(queue),
        scheduled_count=stats.scheduled,
        ready_count=stats.ready,
        leased_count=stats.leased,
        dead_count=stats.dead,
        retained_count=stats.retained,
        created_total=stats.created_total,
        succeeded_total=stats.succeeded_total,
        failed_attempts_total=stats.failed_attempts_total,
        dead_total=stats.dead_total,
    )
    set_timestamp(message.next_ready_time, stats.next_ready_at)
    return message


# --- pages


def page_token(cursor: str | int | None, listed: object) -> str:
    """Return a cursor as an opaque token that only fits the same list; "" for None."""
    if cursor is None:
        return ""
    return base64.urlsafe_b64encode(f"{_digest(listed)}:{cursor}".encode()).decode()


def page_cursor(token: str, listed: object) -> str | None:
    """Return the cursor in a page token; None for "". Raises: PageTokenInvalid."""
    if not token:
        return None
    try:
        digest, _, cursor = base64.b64decode(token, altchars=b"-_", validate=True).decode().partition(":")
    except ValueError as error:
        raise PageTokenInvalid from error
    if digest != _digest(listed) or not cursor:
        raise PageTokenInvalid
    return cursor


def _digest(listed: object) -> str:
    return hashlib.blake2s(repr(listed).encode(), digest_size=6).hexdigest()
