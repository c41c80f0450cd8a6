"""The exception tree. A user catches `adjourn.Error`; each message is one line that says what to do.

Error
├── PermanentTaskFailure                 raised in a task: never retried, kept as a dead letter
├── SingularTaskFailure                  raised in a task: retried, logged quietly
├── ConfigError              ValueError  an ADJOURN_* variable or an argument of configure() is wrong
├── NotDeferrableError                   refused at the call; nothing was sent
│   ├── NotCallableError     ValueError
│   ├── UnpicklableCallableError         PicklingError, AttributeError: lambdas, closures, local classes, impostors
│   │   └── MainModuleError              code of `__main__`, which workers do not have
│   ├── UnpicklableArgumentError         PicklingError, TypeError
│   ├── ArityError           TypeError   the arguments do not fit the signature
│   ├── GeneratorFunctionError  TypeError
│   ├── OptionError          ValueError, TypeError: an unknown, malformed or contradictory option
│   └── NotYetError          NotImplementedError: `_target`, `_transactional`
├── PayloadError                         bytes that cannot be turned into a call or a result
│   ├── PayloadFormatError               not an envelope of ours, or damaged: no worker can ever read it
│   ├── PayloadVersionError              written by a newer adjourn: a newer worker can read it
│   ├── PayloadSignatureError            unsigned, altered, or signed with a key that is not configured here
│   ├── CallableNotFound                 this worker's code lacks the module or the name
│   ├── PayloadUnpickleError             an object of the payload failed to restore itself
│   └── UnpicklableResultError           PicklingError: a task returned what cannot be kept
├── ServiceError                         the service refused or could not be reached
│   ├── InvalidRequest       ValueError
│   │   ├── PayloadTooLarge
│   │   └── RequestIdOutOfWindow         this machine's clock and the service's differ too much
│   ├── QueueNotFound        LookupError
│   ├── QueueExists
│   ├── QueueNotEmpty
│   ├── QueueProtected
│   ├── TaskNotFound         LookupError
│   ├── TaskExists
│   │   └── TaskNameTombstoned
│   ├── TaskStateError
│   ├── LeaseLost
│   ├── PermissionDenied
│   ├── ResourceExhausted
│   │   └── StoreFull
│   ├── ServiceUnavailable   ConnectionError
│   ├── DeadlineExceeded     TimeoutError
│   └── InternalError
├── BatchError                           some tasks of a batch were refused; says which
├── WaitTimeout              TimeoutError  the task has not ended yet
└── ResultError                          the task ended without a result to hand out
    ├── TaskFailed                       it is a dead letter; carries the remote exception
    ├── TaskCancelled
    └── ResultNotRetained
"""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Error(Exception):
    """Root of everything that adjourn raises."""


class PermanentTaskFailure(Error):
    """Raise it in a task that must not be retried: the task becomes a dead letter at once."""


class SingularTaskFailure(Error):
    """Raise it in a task to have it retried without an error in the log."""


class ConfigError(Error, ValueError):
    """The configuration is wrong. The message names every fault."""


class NotDeferrableError(Error):
    """The call was refused before anything was sent, because it would fail in the worker."""


class NotCallableError(NotDeferrableError, ValueError):
    """The first argument of `defer` cannot be called."""


class UnpicklableCallableError(NotDeferrableError, pickle.PicklingError, AttributeError):
    """The callable cannot be named in a way that another process could find it."""


class MainModuleError(UnpicklableCallableError):
    """The code lives in `__main__`, which is another file in a worker."""


class UnpicklableArgumentError(NotDeferrableError, pickle.PicklingError, TypeError):
    """An argument cannot be pickled; the message says which."""


class ArityError(NotDeferrableError, TypeError):
    """The callable does not take these arguments."""


class GeneratorFunctionError(NotDeferrableError, TypeError):
    """Calling a generator function runs none of its body, so the task would do nothing."""


class OptionError(NotDeferrableError, ValueError, TypeError):
    """An option is unknown, out of its bounds or contradicts another."""


class NotYetError(NotDeferrableError, NotImplementedError):
    """The option exists in App Engine and is not supported yet."""


class PayloadError(Error):
    """A payload cannot be turned into a call, or a value into a payload."""


class PayloadFormatError(PayloadError):
    """The bytes are not a payload of adjourn, or they are damaged. No retry can help."""


class PayloadVersionError(PayloadError):
    """The payload was written by a newer adjourn than this one. A worker that has been updated can run it."""


class PayloadSignatureError(PayloadError):
    """The payload is not signed with a key that is configured here. It was not unpickled."""


class CallableNotFound(PayloadError):
    """A module or an attribute that the payload names cannot be imported here. Another release may have it."""


class PayloadUnpickleError(PayloadError):
    """An object in the payload raised while it was being restored; the cause is chained."""


class UnpicklableResultError(PayloadError, pickle.PicklingError):
    """The value that a task returned cannot be pickled, so it cannot be kept."""


class ServiceError(Error):
    """The service refused a call or could not answer it.

    `code` is the gRPC status as in `NOT_FOUND`; `reason` the stable word of `ErrorReason` as in `QUEUE_NOT_FOUND`, or
    empty; `metadata` what the service tells about it."""

    wire_reason: ClassVar[str] = ""

    def __init__(
        self, message: str, *, code: str = "", reason: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.metadata: Mapping[str, str] = dict(metadata or {})

    def twin(self) -> Self:
        """Return the same error for another caller: one exception raised in two threads would mix up their traces."""
        twin = copy.copy(self)
        twin.__cause__ = self.__cause__
        return twin


class InvalidRequest(ServiceError, ValueError):
    """The service refused a value. `violations` holds pairs of a field's path and what is wrong with it."""

    wire_reason = "INVALID_FIELD"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message, code=code, reason=reason, metadata=metadata)
        self.violations = tuple(violations)


class PayloadTooLarge(InvalidRequest):
    """The pickled call is larger than the service takes inside a task."""

    wire_reason = "PAYLOAD_TOO_LARGE"


class RequestIdOutOfWindow(InvalidRequest):
    """The clock of this machine is further from the service's than its idempotency window."""

    wire_reason = "REQUEST_ID_OUT_OF_WINDOW"


class QueueNotFound(ServiceError, LookupError):
    """There is no queue of that name."""

    wire_reason = "QUEUE_NOT_FOUND"


class QueueExists(ServiceError):
    """There is a queue of that name already."""

    wire_reason = "QUEUE_EXISTS"


class QueueNotEmpty(ServiceError):
    """The queue holds tasks and the delete was not forced."""

    wire_reason = "QUEUE_NOT_EMPTY"


class QueueProtected(ServiceError):
    """The queue `default` cannot be deleted."""

    wire_reason = "QUEUE_PROTECTED"


class TaskNotFound(ServiceError, LookupError):
    """There is no such task, or it succeeded and was not retained."""

    wire_reason = "TASK_NOT_FOUND"


class TaskExists(ServiceError):
    """A task of that name is in the queue, or was until lately: the work has been deferred before."""

    wire_reason = "TASK_EXISTS"


class TaskNameTombstoned(TaskExists):
    """A task of that name was in the queue and is gone; the name is still remembered."""

    wire_reason = "TASK_NAME_TOMBSTONED"


class TaskStateError(ServiceError):
    """The state of the task does not allow the call."""

    wire_reason = "TASK_STATE"


class LeaseLost(ServiceError):
    """The lease has ended; nothing was changed."""

    wire_reason = "LEASE_LOST"


class PermissionDenied(ServiceError):
    """The service does not let this caller do that."""


class ResourceExhausted(ServiceError):
    """The service is out of something that waiting a moment does not bring back."""


class StoreFull(ResourceExhausted):
    """The disk of the store is full; nothing was changed."""

    wire_reason = "STORE_FULL"


class ServiceUnavailable(ServiceError, ConnectionError):
    """The service could not be reached in time."""


class DeadlineExceeded(ServiceError, TimeoutError):
    """The service did not answer in time. Whether it did what was asked is unknown."""


class InternalError(ServiceError):
    """A bug of the service; its log has the trace under `metadata["error_id"]`."""

    wire_reason = "INTERNAL"


class BatchError(Error):
    """Some tasks of a batch were refused; all others are durable.

    `failures` maps the position of each refused task in the batch, from 0, to its error; `created` counts the rest."""

    def __init__(self, message: str, failures: Mapping[int, ServiceError], created: int) -> None:
        super().__init__(message)
        self.failures = dict(failures)
        self.created = created

    def __reduce__(self) -> tuple[type[BatchError], tuple[str, dict[int, ServiceError], int]]:
        return type(self), (str(self), self.failures, self.created)


class WaitTimeout(Error, TimeoutError):
    """The task has not ended within the time that the caller was ready to wait."""


class ResultError(Error):
    """The task ended without a result that could be handed out."""


class TaskFailed(ResultError):
    """The task is a dead letter. The remote exception is in `remote_type`, `remote_message` and `remote_traceback`."""

    def __init__(self, message: str, *, remote_type: str = "", remote_message: str = "", remote_traceback: str = ""):
        super().__init__(message)
        self.remote_type = remote_type
        self.remote_message = remote_message
        self.remote_traceback = remote_traceback


class TaskCancelled(ResultError):
    """The task was cancelled before it succeeded."""


class ResultNotRetained(ResultError):
    """The task succeeded, but nobody asked for its result to be kept."""
