"""Run a Python call later, on any of many workers, and never lose it.

    import adjourn

    adjourn.defer(send_mail, user_id, subject="hi")

See `defer`, `task`, `batch` and `configure`. Importing this loads neither gRPC nor protobuf; the first call does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adjourn.batch import batch
from adjourn.config import ClientConfig, configure
from adjourn.context import TaskContext, current_task
from adjourn.defer import adefer, defer
from adjourn.errors import (
    ArityError,
    BatchError,
    CallableNotFound,
    ConfigError,
    DeadlineExceeded,
    Error,
    GeneratorFunctionError,
    InternalError,
    InvalidRequest,
    LeaseLost,
    MainModuleError,
    NotCallableError,
    NotDeferrableError,
    NotYetError,
    OptionError,
    PayloadError,
    PayloadFormatError,
    PayloadSignatureError,
    PayloadTooLarge,
    PayloadUnpickleError,
    PayloadVersionError,
    PermanentTaskFailure,
    PermissionDenied,
    QueueExists,
    QueueNotEmpty,
    QueueNotFound,
    QueueProtected,
    RequestIdOutOfWindow,
    ResourceExhausted,
    ResultError,
    ResultNotRetained,
    ServiceError,
    ServiceUnavailable,
    SingularTaskFailure,
    StoreFull,
    TaskCancelled,
    TaskExists,
    TaskFailed,
    TaskNameTombstoned,
    TaskNotFound,
    TaskStateError,
    UnpicklableArgumentError,
    UnpicklableCallableError,
    UnpicklableResultError,
    WaitTimeout,
)
from adjourn.handle import TaskHandle
from adjourn.options import Retry, TaskOptions
from adjourn.task import Task, task

if TYPE_CHECKING:
    from adjourn.aio import AsyncClient
    from adjourn.client import Client

__all__ = [
    "ArityError",
    "AsyncClient",
    "BatchError",
    "CallableNotFound",
    "Client",
    "ClientConfig",
    "ConfigError",
    "DeadlineExceeded",
    "Error",
    "GeneratorFunctionError",
    "InternalError",
    "InvalidRequest",
    "LeaseLost",
    "MainModuleError",
    "NotCallableError",
    "NotDeferrableError",
    "NotYetError",
    "OptionError",
    "PayloadError",
    "PayloadFormatError",
    "PayloadSignatureError",
    "PayloadTooLarge",
    "PayloadUnpickleError",
    "PayloadVersionError",
    "PermanentTaskFailure",
    "PermissionDenied",
    "QueueExists",
    "QueueNotEmpty",
    "QueueNotFound",
    "QueueProtected",
    "RequestIdOutOfWindow",
    "ResourceExhausted",
    "ResultError",
    "ResultNotRetained",
    "Retry",
    "ServiceError",
    "ServiceUnavailable",
    "SingularTaskFailure",
    "StoreFull",
    "Task",
    "TaskCancelled",
    "TaskContext",
    "TaskExists",
    "TaskFailed",
    "TaskHandle",
    "TaskNameTombstoned",
    "TaskNotFound",
    "TaskOptions",
    "TaskStateError",
    "UnpicklableArgumentError",
    "UnpicklableCallableError",
    "UnpicklableResultError",
    "WaitTimeout",
    "adefer",
    "batch",
    "configure",
    "current_task",
    "defer",
    "task",
]


def __getattr__(name: str) -> Any:
    # The clients import gRPC, which takes longer than everything else here together.
    if name == "Client":
        from adjourn.client import Client

        return Client
    if name == "AsyncClient":
        from adjourn.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
