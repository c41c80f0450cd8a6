"""defer(): a callable with its options becomes a task."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar, overload

from adjourn.batch import current_batch
from adjourn.config import current_config
from adjourn.handle import TaskHandle
from adjourn.options import queue_name, split_seed_options
from adjourn.payload import encode_call

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from adjourn.config import ClientConfig
    from adjourn.options import TaskOptions
    from adjourn.v1.task_service_pb2 import CreateTaskRequest

T = TypeVar("T")


@overload
def defer(obj: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any) -> TaskHandle[T]: ...
@overload
def defer(obj: Callable[..., T], /, *args: Any, **kwargs: Any) -> TaskHandle[T]: ...
def defer(obj: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
    """Have `obj(*args, **kwargs)` called later by a worker. The task is durable when this returns.

    Keyword arguments that begin with an underscore are options and are not passed on: `_countdown` (seconds), `_eta`
    (datetime), `_name`, `_queue`, `_retry_options` (Retry or App Engine's TaskRetryOptions), `_headers`, `_priority`,
    `_tag`, `_key`, `_deadline` and `_retain` (seconds), each as the field of TaskOptions. App Engine's default
    `_url` is taken and means nothing.

    >>> adjourn.defer(send_mail, 42, subject="hi", _countdown=60, _queue="mail")
    TaskHandle('queues/mail/tasks/019a...')

    Inside `with adjourn.batch():` the task is sent, and durable, when the block ends.

    Raises: NotDeferrableError, in the form that fits, for a call or an option that would fail later; ServiceError."""
    options, arguments = split_seed_options(kwargs)
    return defer_with(options, obj, args, arguments)


@overload
async def adefer(obj: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any) -> TaskHandle[T]: ...
@overload
async def adefer(obj: Callable[..., T], /, *args: Any, **kwargs: Any) -> TaskHandle[T]: ...
async def adefer(obj: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
    """As `defer`, for asyncio: waits for the service without blocking the event loop."""
    options, arguments = split_seed_options(kwargs)
    return await adefer_with(options, obj, args, arguments)


def defer_with(options: TaskOptions, obj: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskHandle[Any]:
    """Defer with options that have been checked, and none among the arguments.

    Raises: as `defer`."""
    request = _request(current_config(), options, obj, args, kwargs)
    if (batch := current_batch()) is not None:
        batch.add(request)
    else:
        from adjourn.client import default_client

        for failure in default_client().create_tasks((request,)).values():
            raise failure
    return _handle(request)


async def adefer_with(options: TaskOptions, obj: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskHandle[Any]:
    """As `defer_with`, for asyncio."""
    request = _request(current_config(), options, obj, args, kwargs)
    if (batch := current_batch()) is not None:
        batch.add(request)
    else:
        from adjourn.aio import default_async_client

        for failure in (await default_async_client().create_tasks((request,))).values():
            raise failure
    return _handle(request)


def _request(
    config: ClientConfig, options: TaskOptions, obj: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> CreateTaskRequest:
    # Here and not at the top: `import adjourn` shall not pay for protobuf.
    from adjourn.calls import create_request

    call = encode_call(obj, args, kwargs, config.signing_keys, main=config.main)
    return create_request(_parent(options.queue or config.queue), options, call)


_parent = functools.lru_cache(maxsize=1024)(queue_name)


def _handle(request: CreateTaskRequest) -> TaskHandle[Any]:
    uid = request.request_id
    return TaskHandle.of_created(f"{request.parent}/tasks/{request.task_id or uid}", uid)
