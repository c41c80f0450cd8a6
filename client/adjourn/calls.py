"""Builds requests and reads responses. No I/O: `Client` and `AsyncClient` share all of it."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2
from uuid_utils import uuid7

from adjourn import errors
from adjourn.errors import OptionError, ServiceError
from adjourn.options import NO_OPTIONS, Retry, TaskOptions, queue_name, task_name
from adjourn.v1 import queue_pb2, queue_service_pb2, task_pb2, task_service_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from adjourn.payload import EncodedCall

T = TypeVar("T")

DOMAIN: Final = "adjourn"

# Of the wire API: BatchCreate.
BATCH_TASKS_MAX: Final = 1_000
# Below gRPC's usual 4 MiB for a message, which a proxy on the way may enforce; one task more of 1 MiB may come on top.
BATCH_BYTES_MAX: Final = 3_500_000
# Requests of one client that create tasks at the same time: while the service commits one, the next is on its way.
BATCHES_IN_FLIGHT_MAX: Final = 2
# Of the wire API: Wait.
WAIT_SECONDS_MAX: Final = 60.0
PAGE_SIZE: Final = 500

RETRY_WAIT_SECONDS_FIRST: Final = 0.05
RETRY_WAIT_SECONDS_MAX: Final = 1.0

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # A page of tasks in full view is larger than gRPC's default of 4 MiB.
    ("grpc.max_receive_message_length", 256 << 20),
    # gRPC's own back-off grows to two minutes, with calls failing meanwhile: a service that is back must be found.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Connections shared between channels would outlive `configure`, and in a forked child the channel of the parent.
    ("grpc.use_local_subchannel_pool", 1),
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Rpc(NamedTuple, Generic[T]):
    """One call of the service, as a value: what to send and how to read the answer.

    `repeatable`: doing it twice is doing it once, so it may be retried when nobody knows whether it arrived."""

    service: str
    method: str
    request: Any
    read: Callable[[Any], T]
    repeatable: bool
    extra_seconds: float = 0.0


def retry_waits() -> Iterator[float]:
    """Yield the seconds to wait before each retry: doubling up to a second, up to half of it taken off at random."""
    wait = RETRY_WAIT_SECONDS_FIRST
    while True:
        yield wait * random.uniform(0.5, 1.0)
        wait = min(RETRY_WAIT_SECONDS_MAX, wait * 2)


def create_request(parent: str, options: TaskOptions, call: EncodedCall) -> task_service_pb2.CreateTaskRequest:
    """Build the create of one task in the queue `parent`, a resource name, under a new uid.

    Assignments are twice as fast as arguments of the constructor, and this is done for every task."""
    request = task_service_pb2.CreateTaskRequest()
    request.parent = parent
    request.request_id = str(uuid7())
    task = request.task
    task.callable = call.callable
    task.payload = call.payload
    if options is not NO_OPTIONS:
        _put_options(request, options)
    return request


def created_name(request: task_service_pb2.CreateTaskRequest) -> str:
    """Return the resource name that the task of a create has."""
    return f"{request.parent}/tasks/{request.task_id or request.request_id}"


def split_batches(
    requests: Sequence[task_service_pb2.CreateTaskRequest],
) -> Iterator[list[task_service_pb2.CreateTaskRequest]]:
    """Cut creates into lists that one BatchCreate may hold, in their order."""
    batch: list[task_service_pb2.CreateTaskRequest] = []
    size = 0
    for request in requests:
        request_size = request.ByteSize()
        if batch and (len(batch) == BATCH_TASKS_MAX or size + request_size > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += request_size
    if batch:
        yield batch


def batch_create(requests: Iterable[task_service_pb2.CreateTaskRequest]) -> Rpc[dict[int, ServiceError]]:
    """Create up to 1,000 tasks; the answer maps the index of each refused one to its error."""
    request = task_service_pb2.BatchCreateTasksRequest(requests=requests)
    return Rpc("Tasks", "BatchCreate", request, _read_failures, repeatable=True)


def get_task(name: str) -> Rpc[task_pb2.Task]:
    """Read a task in full view."""
    request = task_service_pb2.GetTaskRequest(name=task_name(name))
    return Rpc("Tasks", "Get", request, lambda response: response.task, repeatable=True)


def list_tasks(
    parent: str,
    *,
    state: str | int | None,
    tag: str | None,
    key: str | None,
    created_from: datetime | None,
    created_until: datetime | None,
    page_size: int,
    page_token: str,
) -> Rpc[tuple[Sequence[task_pb2.Task], str]]:
    """Read one page of tasks and the token of the next."""
    request = task_service_pb2.ListTasksRequest(
        parent="queues/-" if parent in ("-", "queues/-") else queue_name(parent),
        page_size=page_size,
        page_token=page_token,
        state=_task_state(state),
        tag=tag or "",
        key=key or "",
        created_from=None if created_from is None else _timestamp(created_from),
        created_until=None if created_until is None else _timestamp(created_until),
    )
    return Rpc("Tasks", "List", request, lambda response: (response.tasks, response.next_page_token), repeatable=True)


def cancel_task(name: str) -> Rpc[task_pb2.Task]:
    """Cancel a task that has not ended."""
    request = task_service_pb2.CancelTaskRequest(name=task_name(name))
    return Rpc("Tasks", "Cancel", request, lambda response: response.task, repeatable=False)


def delete_task(name: str) -> Rpc[None]:
    """Remove a task."""
    request = task_service_pb2.DeleteTaskRequest(name=task_name(name))
    return Rpc("Tasks", "Delete", request, _read_nothing, repeatable=False)


def run_task(name: str) -> Rpc[task_pb2.Task]:
    """Make a scheduled task ready."""
    request = task_service_pb2.RunTaskRequest(name=task_name(name))
    return Rpc("Tasks", "Run", request, lambda response: response.task, repeatable=True)


def retry_task(name: str) -> Rpc[task_pb2.Task]:
    """Make a dead letter or a cancelled task ready again."""
    request = task_service_pb2.RetryTaskRequest(name=task_name(name))
    return Rpc("Tasks", "Retry", request, lambda response: response.task, repeatable=False)


def wait_task(name: str, seconds: float) -> Rpc[task_pb2.Task]:
    """Wait up to `seconds`, at most 60, for a task to end."""
    request = task_service_pb2.WaitTaskRequest(name=task_name(name), timeout=_duration(seconds))
    return Rpc("Tasks", "Wait", request, lambda response: response.task, repeatable=True, extra_seconds=seconds)


def create_queue(queue: queue_pb2.Queue) -> Rpc[queue_pb2.Queue]:
    """Make a queue; its name may be short."""
    request = queue_service_pb2.CreateQueueRequest(queue=_with_full_name(queue))
    return Rpc("Queues", "Create", request, lambda response: response.queue, repeatable=False)


def get_queue(name: str) -> Rpc[queue_pb2.Queue]:
    """Read a queue."""
    request = queue_service_pb2.GetQueueRequest(name=queue_name(name))
    return Rpc("Queues", "Get", request, lambda response: response.queue, repeatable=True)


def list_queues(page_token: str) -> Rpc[tuple[Sequence[queue_pb2.Queue], str]]:
    """Read one page of queues and the token of the next."""
    request = queue_service_pb2.ListQueuesRequest(page_size=PAGE_SIZE, page_token=page_token)
    return Rpc("Queues", "List", request, lambda response: (response.queues, response.next_page_token), repeatable=True)


def update_queue(queue: queue_pb2.Queue, mask: FieldMask | Iterable[str] | None) -> Rpc[queue_pb2.Queue]:
    """Change the fields of a queue that the mask names, or without one those that are set."""
    if mask is not None and not isinstance(mask, FieldMask):
        mask = FieldMask(paths=[mask] if isinstance(mask, str) else mask)
    request = queue_service_pb2.UpdateQueueRequest(queue=_with_full_name(queue), update_mask=mask)
    return Rpc("Queues", "Update", request, lambda response: response.queue, repeatable=True)


def delete_queue(name: str, force: bool) -> Rpc[None]:
    """Remove a queue."""
    request = queue_service_pb2.DeleteQueueRequest(name=queue_name(name), force=force)
    return Rpc("Queues", "Delete", request, _read_nothing, repeatable=False)


def pause_queue(name: str) -> Rpc[queue_pb2.Queue]:
    """Stop handing out leases."""
    request = queue_service_pb2.PauseQueueRequest(name=queue_name(name))
    return Rpc("Queues", "Pause", request, lambda response: response.queue, repeatable=True)


def resume_queue(name: str) -> Rpc[queue_pb2.Queue]:
    """Hand out leases again."""
    request = queue_service_pb2.ResumeQueueRequest(name=queue_name(name))
    return Rpc("Queues", "Resume", request, lambda response: response.queue, repeatable=True)


def purge_queue(name: str) -> Rpc[int]:
    """Remove every task of a queue; the answer is how many."""
    request = queue_service_pb2.PurgeQueueRequest(name=queue_name(name))
    return Rpc("Queues", "Purge", request, lambda response: int(response.purged_count), repeatable=False)


def queue_stats(name: str) -> Rpc[queue_pb2.QueueStats]:
    """Read the counters of a queue."""
    request = queue_service_pb2.GetQueueStatsRequest(name=queue_name(name))
    return Rpc("Queues", "GetStats", request, lambda response: response.stats, repeatable=True)


def service_error(
    code: str, message: str, details: status_pb2.Status | None, target: str = "", *, place: str = ""
) -> ServiceError:
    """Return the exception for a status: by the reason in its ErrorInfo, or else by its code, as in `NOT_FOUND`.

    `place` is taken off the front of the paths of fields."""
    reason, metadata, violations = _read_details(details, place)
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, ServiceError)
    where = f"the adjourn service at {target}" if target else "the adjourn service"
    if kind is errors.ServiceUnavailable and not reason:
        message = (
            f"cannot reach {where} ({message}). Is it running (`adjourn serve`, or `adjourn up` on a laptop)? "
            "ADJOURN_TARGET or adjourn.configure(target=...) says where it is."
        )
    elif kind is errors.ServiceUnavailable:
        message = f"{where} cannot take the call at the moment ({message}); try again"
    elif kind is errors.DeadlineExceeded:
        message = (
            f"{where} did not answer in time; whether it did what was asked is unknown. ADJOURN_TIMEOUT is the time."
        )
    elif code == "UNIMPLEMENTED":
        message = f"{where} does not know this call ({message}): is it an older release, or another program's port?"
    elif kind is ServiceError:
        message = f"{where} answered {code}: {message}"
    # The service may have put them into its message already.
    missing = [f"{field}: {text}" for field, text in violations if text not in message]
    if missing:
        message = f"{message} ({'; '.join(missing)})"
    if issubclass(kind, errors.InvalidRequest):
        return kind(message, code=code, reason=reason, metadata=metadata, violations=violations)
    return kind(message, code=code, reason=reason, metadata=metadata)


def rpc_error(error: Any, target: str) -> ServiceError:
    """Return the exception for a `grpc.RpcError` of either kind of client."""
    details = None
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            try:
                details = status_pb2.Status.FromString(value)
            except DecodeError:
                details = None
    return service_error(error.code().name, error.details() or "no details", details, target)


def _put_options(request: task_service_pb2.CreateTaskRequest, options: TaskOptions) -> None:
    task = request.task
    if options.name is not None:
        request.task_id = options.name
    if options.countdown is not None:
        task.countdown.CopyFrom(_duration(options.countdown))
    if options.eta is not None:
        task.eta.CopyFrom(_timestamp(options.eta))
    if options.headers is not None:
        task.headers.update(options.headers)
    if options.priority:
        task.priority = options.priority
    if options.tag is not None:
        task.tag = options.tag
    if options.key is not None:
        task.key = options.key
    if options.deadline is not None:
        task.deadline.CopyFrom(_duration(options.deadline))
    if options.retain is not None:
        task.retain.CopyFrom(_duration(options.retain))
    if options.retry is not None:
        task.retry_policy.CopyFrom(retry_policy(options.retry))


def retry_policy(retry: Retry) -> queue_pb2.RetryPolicy:
    """Return the policy as the wire API has it."""
    return queue_pb2.RetryPolicy(
        max_attempts=retry.max_attempts,
        max_age=None if retry.max_age is None else _duration(retry.max_age),
        min_backoff=None if retry.min_backoff is None else _duration(retry.min_backoff),
        max_backoff=None if retry.max_backoff is None else _duration(retry.max_backoff),
        max_doublings=retry.max_doublings,
        stop=queue_pb2.STOP_RULE_ALL if retry.stop == "all" else queue_pb2.STOP_RULE_ANY,
        jitter=retry.jitter,
    )


def _duration(seconds: Any) -> Duration:
    whole, micros = divmod(round(float(seconds) * 1_000_000), 1_000_000)
    return Duration(seconds=whole, nanos=micros * 1_000)


def _timestamp(moment: datetime) -> Timestamp:
    seconds, micros = divmod((moment.astimezone(UTC) - _EPOCH) // _MICROSECOND, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1_000)


def _task_state(state: str | int | None) -> Any:
    if isinstance(state, str):
        names = {name.removeprefix("TASK_STATE_").lower(): number for name, number in task_pb2.TaskState.items()}
        if (number := names.get(state.lower())) is None:
            known = ", ".join(name for name, number in names.items() if number)
            raise OptionError(f"there is no task state {state!r}; the states are {known}")
        return number
    return state or task_pb2.TASK_STATE_UNSPECIFIED


def _with_full_name(queue: queue_pb2.Queue) -> queue_pb2.Queue:
    full = queue_pb2.Queue()
    full.CopyFrom(queue)
    full.name = queue_name(queue.name)
    return full


def _read_failures(response: task_service_pb2.BatchCreateTasksResponse) -> dict[int, ServiceError]:
    failures = {}
    for index, status in response.failed_requests.items():
        # The position in a request that was merged from those of several callers tells none of them anything.
        place = f"requests[{index}]."
        code, message = code_pb2.Code.Name(status.code), status.message.replace(place, "")
        failures[index] = service_error(code, message, status, place=place)
    return failures


def _read_nothing(_response: Any) -> None:
    return None


def _read_details(
    details: status_pb2.Status | None, place: str
) -> tuple[str, Mapping[str, str], list[tuple[str, str]]]:
    reason: str = ""
    metadata: Mapping[str, str] = {}
    violations: list[tuple[str, str]] = []
    for detail in () if details is None else details.details:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations += [(each.field.removeprefix(place), each.description) for each in bad.field_violations]
    return reason, metadata, violations


def _by_reason(root: type[ServiceError]) -> Iterator[tuple[str, type[ServiceError]]]:
    for kind in root.__subclasses__():
        if "wire_reason" in vars(kind):
            yield kind.wire_reason, kind
        yield from _by_reason(kind)


_BY_REASON: Final[dict[str, type[ServiceError]]] = dict(_by_reason(ServiceError)) | {
    "PAGE_TOKEN": errors.InvalidRequest,
    "STORE_UNAVAILABLE": errors.ServiceUnavailable,
    "SHUTTING_DOWN": errors.ServiceUnavailable,
}
_BY_CODE: Final[dict[str, type[ServiceError]]] = {
    "INVALID_ARGUMENT": errors.InvalidRequest,
    "OUT_OF_RANGE": errors.InvalidRequest,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "PERMISSION_DENIED": errors.PermissionDenied,
    "UNAUTHENTICATED": errors.PermissionDenied,
    "RESOURCE_EXHAUSTED": errors.ResourceExhausted,
    "INTERNAL": errors.InternalError,
    "UNAVAILABLE": errors.ServiceUnavailable,
}


class Waits:
    """Cuts a long wait for a task into calls that the service allows."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    def next_seconds(self) -> float:
        """Return how long the next call may wait."""
        if self._end is None:
            return WAIT_SECONDS_MAX
        return min(WAIT_SECONDS_MAX, max(0.0, self._end - time.monotonic()))

    def over(self, task: task_pb2.Task) -> bool:
        """Tell whether the task has ended or the time is up."""
        return has_ended(task) or (self._end is not None and time.monotonic() >= self._end)


def has_ended(task: task_pb2.Task) -> bool:
    """Tell whether a task has succeeded, died or been cancelled."""
    return task.status.state in (
        task_pb2.TASK_STATE_SUCCEEDED,
        task_pb2.TASK_STATE_DEAD,
        task_pb2.TASK_STATE_CANCELLED,
    )
