"""What the service refuses, each with the name of its status code and its reason.

The reasons are those of proto/adjourn/v1/error_reason.proto. One interceptor turns these errors into google.rpc.Status;
everything else that is raised is a bug of ours and becomes INTERNAL.
"""

from collections.abc import Mapping
from typing import ClassVar


class ServiceError(Exception):
    """A refusal. `code` names a grpc.StatusCode; `reason` and `metadata` go into ErrorInfo."""

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidField(ServiceError):
    """A field breaks its rule. `violations` maps the path of each field to what is wrong with it."""

    code, reason = "INVALID_ARGUMENT", "INVALID_FIELD"

    def __init__(self, violations: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{path}: {problem}" for path, problem in violations.items()))
        self.violations = dict(violations)


class QueueNotFound(ServiceError):
    """There is no such queue."""

    code, reason = "NOT_FOUND", "QUEUE_NOT_FOUND"

    def __init__(self, queue: str) -> None:
        super().__init__(f"queue {queue!r} does not exist; create it with 'adjourn queues create {queue}'", queue=queue)


class QueueExists(ServiceError):
    """There is a queue of that name."""

    code, reason = "ALREADY_EXISTS", "QUEUE_EXISTS"

    def __init__(self, queue: str) -> None:
        super().__init__(f"queue {queue!r} exists already", queue=queue)


class QueueNotEmpty(ServiceError):
    """The queue holds tasks."""

    code, reason = "FAILED_PRECONDITION", "QUEUE_NOT_EMPTY"

    def __init__(self, queue: str) -> None:
        super().__init__(f"queue {queue!r} holds tasks; purge it first, or delete it with force", queue=queue)


class QueueProtected(ServiceError):
    """The queue always exists."""

    code, reason = "FAILED_PRECONDITION", "QUEUE_PROTECTED"

    def __init__(self, queue: str) -> None:
        super().__init__(f"queue {queue!r} cannot be deleted; purge it instead", queue=queue)


class TaskNotFound(ServiceError):
    """There is no such task."""

    code, reason = "NOT_FOUND", "TASK_NOT_FOUND"

    def __init__(self, task: str) -> None:
        super().__init__(f"task {task} does not exist, or has ended and was not retained", task=task)


class TaskExists(ServiceError):
    """The name is taken by a task that is still there."""

    code, reason = "ALREADY_EXISTS", "TASK_EXISTS"

    def __init__(self, task: str) -> None:
        super().__init__(f"task {task} exists already", task=task)


class TaskNameTombstoned(ServiceError):
    """The name was used lately."""

    code, reason = "ALREADY_EXISTS", "TASK_NAME_TOMBSTONED"

    def __init__(self, task: str) -> None:
        super().__init__(f"task {task} has ended, and its name is still kept from reuse (tombstone_ttl)", task=task)


class TaskStateRefused(ServiceError):
    """The task's state does not allow the call."""

    code, reason = "FAILED_PRECONDITION", "TASK_STATE"

    def __init__(self, task: str, state: str, verb: str) -> None:
        super().__init__(f"task {task} is {state.lower()} and cannot be {verb}", task=task, state=state)


class PayloadTooLarge(ServiceError):
    """The payload is over the inline limit."""

    code, reason = "INVALID_ARGUMENT", "PAYLOAD_TOO_LARGE"

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the payload has {size_bytes} bytes, over this service's limit of {limit_bytes}; pass a reference to the"
            " data instead of the data, or raise the service's inline limit",
            size_bytes=size_bytes,
            limit_bytes=limit_bytes,
        )


class RequestIdOutOfWindow(ServiceError):
    """The time inside a request_id is too far from the service's."""

    code, reason = "INVALID_ARGUMENT", "REQUEST_ID_OUT_OF_WINDOW"

    def __init__(self, skew_us: int, window_us: int) -> None:
        skew, window = round(skew_us / 1e6), round(window_us / 1e6)
        side = "behind" if skew < 0 else "ahead of"
        super().__init__(
            f"the time in request_id is {abs(skew)} s {side} the service's clock, more than the idempotency window of"
            f" {window} s: make a new UUIDv7 for each create, and set the caller's clock",
            skew_seconds=skew,
            window_seconds=window,
        )


class LeaseLost(ServiceError):
    """The lease has ended."""

    code, reason = "ABORTED", "LEASE_LOST"

    def __init__(self, lease_id: str) -> None:
        super().__init__("the lease has ended, and nothing was changed", lease_id=lease_id)


class PageTokenInvalid(ServiceError):
    """The page token is not one of ours, or belongs to another list."""

    code, reason = "INVALID_ARGUMENT", "PAGE_TOKEN"

    def __init__(self) -> None:
        super().__init__("page_token does not belong to this list; start again without it")


class StoreFull(ServiceError):
    """The disk is full."""

    code, reason = "RESOURCE_EXHAUSTED", "STORE_FULL"

    def __init__(self) -> None:
        super().__init__("the store's disk is full and nothing was changed; free space, then try again")


class StoreUnavailable(ServiceError):
    """The store cannot commit at the moment."""

    code, reason = "UNAVAILABLE", "STORE_UNAVAILABLE"


class ShuttingDown(ServiceError):
    """The service is stopping."""

    code, reason = "UNAVAILABLE", "SHUTTING_DOWN"

    def __init__(self) -> None:
        super().__init__("the service is stopping; the call can be repeated")


class ConfigError(Exception):
    """The service was started with settings that cannot work; the message says which and what to do."""
