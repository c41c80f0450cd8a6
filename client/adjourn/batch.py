"""Collects the defers of a block and sends them in as few requests as possible."""

from __future__ import annotations

import threading
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Final, Self

from adjourn.errors import BatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adjourn.client import Pipeline
    from adjourn.errors import ServiceError
    from adjourn.v1.task_service_pb2 import CreateTaskRequest

# Refused tasks that a BatchError spells out; all of them are in its `failures`.
_FAILURES_TOLD_MAX: Final = 3

_current: ContextVar[Batch | None] = ContextVar("adjourn_batch", default=None)


class Batch:
    """Collects what is deferred inside `with adjourn.batch():` or `async with adjourn.batch():`.

    Up to 1,000 tasks go in one request and one commit when the block ends. Of a larger `with` block every 1,000 (or
    3.5 MB) are sent as soon as they are together, while the block goes on; `async with` sends all at its end. Handles
    are given out at once, but their tasks are durable only after the block.

    If the block raises, what has not been sent is not sent: all of it, up to 1,000 tasks. A batch inside a batch joins
    the outer one. Asyncio tasks that are started inside join too.

    Raises at the end of the block: BatchError if some tasks were refused, ServiceError if a whole request failed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token: Token[Batch | None] | None = None
        self._joined = 0
        self._clear()

    def add(self, request: CreateTaskRequest) -> None:
        """Take a create into the batch.

        Raises: ServiceError if an earlier request of the batch failed as a whole."""
        from adjourn.calls import BATCH_BYTES_MAX, BATCH_TASKS_MAX

        size = request.ByteSize()
        with self._lock:
            full = len(self._requests) == BATCH_TASKS_MAX or self._bytes + size > BATCH_BYTES_MAX
            if full and self._requests and self._streams:
                self._flush()
            self._requests.append(request)
            self._bytes += size
            self._added += 1

    def __enter__(self) -> Self:
        self._enter(streams=True)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self._leave():
            return
        if error is not None:
            self._give_up(error)
        elif self._pipeline is not None:
            self._flush()
            self._raise_failures(self._pipeline.finish())
        elif self._requests:
            from adjourn.client import default_client

            self._raise_failures(default_client().create_tasks(self._requests))

    async def __aenter__(self) -> Self:
        self._enter(streams=False)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._leave() and error is None and self._requests:
            from adjourn.aio import default_async_client

            self._raise_failures(await default_async_client().create_tasks(self._requests))

    def _clear(self) -> None:
        self._requests: list[CreateTaskRequest] = []
        self._bytes = 0
        self._added = 0
        self._streams = False
        self._pipeline: Pipeline | None = None

    def _enter(self, *, streams: bool) -> None:
        if current_batch() is not None:
            self._joined += 1
            return
        self._clear()
        self._streams = streams
        self._token = _current.set(self)

    def _leave(self) -> bool:
        """Close the batch; False if it only was part of an outer one."""
        if self._joined:
            self._joined -= 1
            return False
        assert self._token is not None
        _current.reset(self._token)
        self._token = None
        return True

    @property
    def is_open(self) -> bool:
        """Whether the block is still running. Asyncio tasks started in it may outlive it."""
        return self._token is not None

    def _flush(self) -> None:
        from adjourn.client import Pipeline, default_client

        if self._pipeline is None:
            self._pipeline = Pipeline(default_client())
        self._pipeline.send(self._requests)
        self._requests = []
        self._bytes = 0

    def _give_up(self, error: BaseException) -> None:
        if self._pipeline is None:
            return
        try:
            self._pipeline.finish()
        finally:
            error.add_note(
                f"adjourn: the first {self._added - len(self._requests):,} tasks of the batch had been sent; the other "
                f"{len(self._requests):,} were dropped"
            )

    def _raise_failures(self, failures: Mapping[int, ServiceError]) -> None:
        if not failures:
            return
        told = [f"number {index + 1}: {failures[index]}" for index in sorted(failures)[:_FAILURES_TOLD_MAX]]
        if len(failures) > len(told):
            told.append("...")
        raise BatchError(
            f"{len(failures):,} of the {self._added:,} tasks of the batch were refused, the others are made; "
            + "; ".join(told),
            failures,
            self._added - len(failures),
        )


def batch() -> Batch:
    """Collect what is deferred in a block: one round trip and one commit for up to 1,000 tasks.

    >>> with adjourn.batch():
    ...     for user in users:
    ...         adjourn.defer(send_mail, user)

    See `Batch` for what happens above 1,000, on errors and when nested."""
    return Batch()


def current_batch() -> Batch | None:
    """Return the batch that collects what is deferred here, or None."""
    found = _current.get()
    return found if found is not None and found.is_open else None
