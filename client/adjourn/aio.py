"""The client for asyncio: as `adjourn.client`, one channel per event loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar
from weakref import WeakKeyDictionary

import grpc

from adjourn import calls
from adjourn.config import ClientConfig, current_config, on_configure
from adjourn.errors import DeadlineExceeded, ServiceError, ServiceUnavailable
from adjourn.v1 import queue_service_pb2_grpc, task_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from datetime import datetime

    from google.protobuf.field_mask_pb2 import FieldMask

    from adjourn.v1.queue_pb2 import Queue, QueueStats
    from adjourn.v1.task_pb2 import Task
    from adjourn.v1.task_service_pb2 import CreateTaskRequest

T = TypeVar("T")


class _Entry(NamedTuple):
    """Creates that wait to be sent, and the future that gets the errors of the refused ones by index."""

    requests: Sequence[CreateTaskRequest]
    size: int
    deadline: float
    answer: asyncio.Future[dict[int, ServiceError]]


class AsyncClient:
    """Calls the service from one event loop, the one that runs at the first call. Otherwise as `adjourn.Client`."""

    def __init__(self, target: str | None = None, config: ClientConfig | None = None) -> None:
        config = config or current_config()
        self.config: Final = config if target is None else replace(config, target=target)
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[str, Any] = {}
        self._queue: deque[_Entry] = deque()
        self._senders: set[asyncio.Task[None]] = set()

    @property
    def target(self) -> str:
        """Where the service is looked for."""
        return self.config.target

    async def close(self) -> None:
        """Close the channel. A later call opens a new one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.target!r})"

    # Tasks

    async def create_tasks(self, requests: Sequence[CreateTaskRequest]) -> Mapping[int, ServiceError]:
        """Create prepared tasks, durable at return; return the errors of the refused ones by index.

        Up to 1,000 tasks are one request and one commit, merged with those of other coroutines. More are several
        requests, two at a time; if one of them fails as a whole, others may be durable."""
        if not requests:
            return {}
        answers = []
        for batch in calls.split_batches(requests):
            size = sum(request.ByteSize() for request in batch)
            answer: asyncio.Future[dict[int, ServiceError]] = asyncio.get_running_loop().create_future()
            self._queue.append(_Entry(batch, size, time.monotonic() + self.config.timeout, answer))
            answers.append((len(batch), answer))
        for _ in range(min(len(answers), calls.BATCHES_IN_FLIGHT_MAX - len(self._senders))):
            # A task and not this coroutine sends: when one caller is cancelled, the others still get their answers. It
            # starts after the coroutines that are ready now, so their creates ride along.
            sender = asyncio.create_task(self._send_queued())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        failures: dict[int, ServiceError] = {}
        offset = 0
        # All are waited for before any error is raised, so that none goes unseen.
        try:
            await asyncio.wait([answer for _, answer in answers])
        except asyncio.CancelledError:
            for _, answer in answers:
                answer.cancel()
            raise
        for count, answer in answers:
            failures.update({offset + index: failure for index, failure in answer.result().items()})
            offset += count
        return failures

    async def get_task(self, name: str) -> Task:
        """Read a task in full view."""
        return await self.call(calls.get_task(name))

    async def list_tasks(
        self,
        parent: str = "-",
        *,
        state: str | int | None = None,
        tag: str | None = None,
        key: str | None = None,
        created_from: datetime | None = None,
        created_until: datetime | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Task]:
        """Iterate over the tasks of a queue, or of all (`-`), in the order of creation, in basic view."""
        token, left = "", limit
        while left is None or left > 0:
            tasks, token = await self.call(
                calls.list_tasks(
                    parent,
                    state=state,
                    tag=tag,
                    key=key,
                    created_from=created_from,
                    created_until=created_until,
                    page_size=calls.PAGE_SIZE if left is None else min(calls.PAGE_SIZE, left),
                    page_token=token,
                )
            )
            for task in tasks:
                yield task
            left = None if left is None else left - len(tasks)
            if not token:
                return

    async def cancel_task(self, name: str) -> Task:
        """Cancel a task that has not ended; one that runs is stopped."""
        return await self.call(calls.cancel_task(name))

    async def delete_task(self, name: str) -> None:
        """Remove a task in any state."""
        await self.call(calls.delete_task(name))

    async def run_task(self, name: str) -> Task:
        """Make a scheduled task ready now."""
        return await self.call(calls.run_task(name))

    async def retry_task(self, name: str) -> Task:
        """Make a dead letter or a cancelled task ready again, with no attempts counted."""
        return await self.call(calls.retry_task(name))

    async def wait_task(self, name: str, timeout: float | None = None) -> Task:  # noqa: ASYNC109  -- the service waits.
        """Wait until a task has ended or `timeout` seconds have passed (None: for ever); return it as it is then."""
        waits = calls.Waits(timeout)
        while True:
            task = await self.call(calls.wait_task(name, waits.next_seconds()))
            if waits.over(task):
                return task

    # Queues

    async def create_queue(self, queue: Queue) -> Queue:
        """Make a queue; return it with the defaults filled in."""
        return await self.call(calls.create_queue(queue))

    async def get_queue(self, name: str) -> Queue:
        """Read a queue."""
        return await self.call(calls.get_queue(name))

    async def list_queues(self) -> AsyncIterator[Queue]:
        """Iterate over the queues by name."""
        token = ""
        while True:
            queues, token = await self.call(calls.list_queues(token))
            for queue in queues:
                yield queue
            if not token:
                return

    async def update_queue(self, queue: Queue, mask: FieldMask | Iterable[str] | None = None) -> Queue:
        """Change the fields that `mask` names; without one, those that are set in `queue`."""
        return await self.call(calls.update_queue(queue, mask))

    async def delete_queue(self, name: str, force: bool = False) -> None:
        """Remove a queue, with its tasks if forced."""
        await self.call(calls.delete_queue(name, force))

    async def pause_queue(self, name: str) -> Queue:
        """Stop handing out leases."""
        return await self.call(calls.pause_queue(name))

    async def resume_queue(self, name: str) -> Queue:
        """Hand out leases again."""
        return await self.call(calls.resume_queue(name))

    async def purge_queue(self, name: str) -> int:
        """Remove every task of a queue; return how many there were."""
        return await self.call(calls.purge_queue(name))

    async def queue_stats(self, name: str) -> QueueStats:
        """Read the counters of a queue."""
        return await self.call(calls.queue_stats(name))

    # Below the calls

    async def call(self, rpc: calls.Rpc[T]) -> T:
        """Make one call and return what it reads from the answer.

        Raises: ServiceError."""
        return await self._call_until(rpc, time.monotonic() + self.config.timeout + rpc.extra_seconds)

    async def _send_queued(self) -> None:
        while self._queue:
            group = self._take_group()
            if not group:
                continue
            merged = [request for entry in group for request in entry.requests]
            try:
                failures = await self._call_until(calls.batch_create(merged), group[0].deadline)
            except ServiceError as error:
                self._settle_failed(group, error)
                continue
            except BaseException:
                for entry in group:
                    entry.answer.cancel()
                raise
            start = 0
            for entry in group:
                own = range(start, start + len(entry.requests)) if failures else ()
                if not entry.answer.done():
                    entry.answer.set_result({index - start: failures[index] for index in own if index in failures})
                start += len(entry.requests)

    def _take_group(self) -> list[_Entry]:
        """Take from the queue what fits into one request, without those whose callers have gone."""
        group: list[_Entry] = []
        count = size = 0
        while self._queue:
            entry = self._queue[0]
            count += len(entry.requests)
            size += entry.size
            if group and (count > calls.BATCH_TASKS_MAX or size > calls.BATCH_BYTES_MAX):
                break
            self._queue.popleft()
            if not entry.answer.cancelled():
                group.append(entry)
        return group

    def _settle_failed(self, group: list[_Entry], error: ServiceError) -> None:
        again = []
        for number, entry in enumerate(group):
            late = number == 0 or entry.deadline <= time.monotonic()
            if late or not isinstance(error, (ServiceUnavailable, DeadlineExceeded)):
                if not entry.answer.done():
                    entry.answer.set_exception(error.twin())
            else:
                # The time of the oldest is up; who came later has time left, and a repeated create is the same create.
                again.append(entry)
        self._queue.extendleft(reversed(again))

    async def _call_until(self, rpc: calls.Rpc[T], deadline: float) -> T:
        method = getattr(self._connected_stubs()[rpc.service], rpc.method)
        unavailable: ServiceUnavailable | None = None
        for wait in calls.retry_waits():
            try:
                # Zero would mean no deadline to gRPC.
                return rpc.read(await method(rpc.request, timeout=max(0.001, deadline - time.monotonic())))
            except grpc.aio.AioRpcError as error:
                failure = calls.rpc_error(error, self.target)
                if isinstance(failure, DeadlineExceeded) and unavailable is not None:
                    raise unavailable from error  # The last moments of a long outage tell less than what came before.
                if not isinstance(failure, ServiceUnavailable) or not rpc.repeatable:
                    raise failure from error
                if time.monotonic() + wait >= deadline:
                    raise failure from error
                unavailable = failure
            await asyncio.sleep(wait)
        raise AssertionError("retry_waits() ends")

    def _connected_stubs(self) -> dict[str, Any]:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.target, options=calls.CHANNEL_OPTIONS)
            self._stubs = {
                "Tasks": task_service_pb2_grpc.TasksStub(self._channel),
                "Queues": queue_service_pb2_grpc.QueuesStub(self._channel),
            }
        return self._stubs


_defaults: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[int, AsyncClient]] = WeakKeyDictionary()


def default_async_client() -> AsyncClient:
    """Return the client of the running event loop, made from the configuration at the first use and again after
    `configure`.

    Raises: ConfigError; RuntimeError outside of a running loop."""
    loop = asyncio.get_running_loop()
    pid, client = _defaults.get(loop, (0, None))
    if client is None or pid != os.getpid():
        client = AsyncClient()
        _defaults[loop] = (os.getpid(), client)
    return client


on_configure(_defaults.clear)
