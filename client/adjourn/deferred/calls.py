"""Deferring and running, with App Engine's signatures."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from adjourn.config import current_config
from adjourn.defer import defer_with
from adjourn.errors import PayloadFormatError, PayloadSignatureError, PermanentTaskFailure
from adjourn.handle import TaskHandle
from adjourn.options import split_seed_options
from adjourn.payload import decode_call, encode_call

if TYPE_CHECKING:
    from collections.abc import Callable


class Task(TaskHandle[Any]):
    """What `defer` returns: a TaskHandle that speaks of itself as `taskqueue.Task` does. `name` is the bare name."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The name given at the call, or a generated one."""
        return self.id

    @property
    def queue_name(self) -> str:
        """The queue that the task was added to."""
        return self.queue

    @property
    def was_enqueued(self) -> bool:
        """True: a task exists once it has been added."""
        return True


def defer(obj: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Task:
    """Have `obj(*args, **kwargs)` called later. Options are `_countdown _eta _headers _name _queue _retry_options
    _url`, with the meaning they have in App Engine, and those of `adjourn.defer`.

    Raises: as `adjourn.defer`; NotYetError for `_target` and `_transactional`."""
    options, arguments = split_seed_options(kwargs)
    handle = defer_with(options, obj, args, arguments)
    return Task.of_created(handle.name, handle.uid or "")


def serialize(obj: Callable[..., Any], /, *args: Any, **kwargs: Any) -> bytes:
    """Turn a call into the bytes that `run` takes.

    Raises: NotDeferrableError."""
    config = current_config()
    return encode_call(obj, args, kwargs, config.signing_keys, main=config.main).payload


def run(data: bytes) -> Any:
    """Run a serialized call and return its value; what it raises is passed on. A coroutine is run to its end.

    Raises: PermanentTaskFailure for bytes that no retry can make a call of (damaged, or without a valid signature
    where keys are configured); CallableNotFound, PayloadVersionError or PayloadUnpickleError for what another release
    may run."""
    try:
        call = decode_call(data, current_config().signing_keys)
    except (PayloadFormatError, PayloadSignatureError) as error:
        raise PermanentTaskFailure(str(error)) from error
    value = call.function(*call.args, **call.kwargs)
    return asyncio.run(value) if inspect.iscoroutine(value) else value


def run_from_datastore(key: Any) -> None:
    """Run a call that App Engine had put into the datastore because it was large.

    Payloads travel with their tasks here, so there is never such an entity, and this does what App Engine does then.

    Raises: PermanentTaskFailure, always."""
    raise PermanentTaskFailure(f"there is no datastore entity {key!r}: payloads travel with their tasks")
