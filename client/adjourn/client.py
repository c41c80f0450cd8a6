"""The synchronous client: one channel per process, a deadline on every call, retries of what may be repeated."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

import grpc

from adjourn import calls
from adjourn.config import ClientConfig, current_config, on_configure
from adjourn.errors import DeadlineExceeded, ServiceError, ServiceUnavailable
from adjourn.options import queue_name
from adjourn.outbox import Outbox
from adjourn.v1 import queue_service_pb2_grpc, task_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from google.protobuf.field_mask_pb2 import FieldMask

    from adjourn.v1.queue_pb2 import Queue, QueueStats
    from adjourn.v1.task_pb2 import Task
    from adjourn.v1.task_service_pb2 import BatchCreateTasksResponse, CreateTaskRequest

T = TypeVar("T")

# Channels that a forked child has from its parent. Closing or collecting one there would touch the parent's threads,
# which do not exist in the child, so they are kept for good.
_inherited: Final[list[Any]] = []


class _PendingCall(Protocol):
    def result(self, timeout: float | None = None) -> Any: ...


class _Connection:
    """Everything of a client that belongs to one process: a fork needs a new one.

    GRPC_ENABLE_FORK_SUPPORT is not set, on purpose: with it a fork breaks the calls of the parent's other threads, and
    without it a new channel works in the child, after one UNAVAILABLE at times, which the retry covers (grpc 1.85)."""

    def __init__(self, target: str, send: Callable[[Sequence[CreateTaskRequest], float], Mapping[int, ServiceError]]):
        self.pid = os.getpid()
        self.channel = grpc.insecure_channel(target, options=calls.CHANNEL_OPTIONS)
        self.stubs: dict[str, Any] = {
            "Tasks": task_service_pb2_grpc.TasksStub(self.channel),
            "Queues": queue_service_pb2_grpc.QueuesStub(self.channel),
        }
        self.outbox: Outbox[CreateTaskRequest] = Outbox(send)


class Client:
    """Calls the service. Thread-safe; survives fork; connects at the first call.

    Names may be short: `mail` for `queues/mail`, `mail/tasks/x` for `queues/mail/tasks/x`. Messages are those of
    `adjourn.v1`. All methods that call raise ServiceError, and OptionError for a malformed name.

    Every call ends within `config.timeout` seconds. One that may be repeated is retried while the service is
    unavailable, with growing, jittered waits, so that a rolling restart is not seen; other errors come at once."""

    def __init__(self, target: str | None = None, config: ClientConfig | None = None) -> None:
        config = config or current_config()
        self.config: Final = config if target is None else replace(config, target=target)
        self._lock = threading.Lock()
        self._connected: _Connection | None = None

    @property
    def target(self) -> str:
        """Where the service is looked for."""
        return self.config.target

    def close(self) -> None:
        """Close the channel. A later call opens a new one."""
        with self._lock:
            connection, self._connected = self._connected, None
        if connection is not None and connection.pid == os.getpid():
            connection.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.target!r})"

    # Tasks

    def create_tasks(self, requests: Sequence[CreateTaskRequest]) -> Mapping[int, ServiceError]:
        """Create prepared tasks, durable at return; return the errors of the refused ones by index.

        Up to 1,000 tasks are one request and one commit, merged with those of other threads. More are several requests,
        two at a time; if one of them fails as a whole, those before it are durable."""
        batches = list(calls.split_batches(requests))
        if len(batches) == 1:
            size = sum(request.ByteSize() for request in requests)
            return self._connection().outbox.put(requests, size, time.monotonic() + self.config.timeout)
        pipeline = Pipeline(self)
        for batch in batches:
            pipeline.send(batch)
        return pipeline.finish()

    def get_task(self, name: str) -> Task:
        """Read a task in full view."""
        return self.call(calls.get_task(name))

    def list_tasks(
        self,
        parent: str = "-",
        *,
        state: str | int | None = None,
        tag: str | None = None,
        key: str | None = None,
        created_from: datetime | None = None,
        created_until: datetime | None = None,
        limit: int | None = None,
    ) -> Iterator[Task]:
        """Iterate over the tasks of a queue, or of all (`-`), in the order of creation, in basic view.

        `state` is a word such as "dead" or a TaskState. Pages are fetched as they are needed."""
        token, left = "", limit
        while left is None or left > 0:
            tasks, token = self.call(
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
            yield from tasks
            left = None if left is None else left - len(tasks)
            if not token:
                return

    def cancel_task(self, name: str) -> Task:
        """Cancel a task that has not ended; one that runs is stopped."""
        return self.call(calls.cancel_task(name))

    def delete_task(self, name: str) -> None:
        """Remove a task in any state."""
        self.call(calls.delete_task(name))

    def run_task(self, name: str) -> Task:
        """Make a scheduled task ready now."""
        return self.call(calls.run_task(name))

    def retry_task(self, name: str) -> Task:
        """Make a dead letter or a cancelled task ready again, with no attempts counted."""
        return self.call(calls.retry_task(name))

    def wait_task(self, name: str, timeout: float | None = None) -> Task:
        """Wait until a task has ended or `timeout` seconds have passed (None: for ever); return it as it is then."""
        waits = calls.Waits(timeout)
        while True:
            task = self.call(calls.wait_task(name, waits.next_seconds()))
            if waits.over(task):
                return task

    # Queues

    def create_queue(self, queue: Queue) -> Queue:
        """Make a queue; return it with the defaults filled in."""
        return self.call(calls.create_queue(queue))

    def get_queue(self, name: str) -> Queue:
        """Read a queue."""
        return self.call(calls.get_queue(name))

    def list_queues(self) -> Iterator[Queue]:
        """Iterate over the queues by name. Pages are fetched as they are needed."""
        token = ""
        while True:
            queues, token = self.call(calls.list_queues(token))
            yield from queues
            if not token:
                return

    def update_queue(self, queue: Queue, mask: FieldMask | Iterable[str] | None = None) -> Queue:
        """Change the fields that `mask` names; without one, those that are set in `queue`."""
        return self.call(calls.update_queue(queue, mask))

    def delete_queue(self, name: str, force: bool = False) -> None:
        """Remove a queue, with its tasks if forced."""
        self.call(calls.delete_queue(name, force))

    def pause_queue(self, name: str) -> Queue:
        """Stop handing out leases."""
        return self.call(calls.pause_queue(name))

    def resume_queue(self, name: str) -> Queue:
        """Hand out leases again."""
        return self.call(calls.resume_queue(name))

    def purge_queue(self, name: str) -> int:
        """Remove every task of a queue; return how many there were."""
        return self.call(calls.purge_queue(name))

    def queue_stats(self, name: str) -> QueueStats:
        """Read the counters of a queue."""
        return self.call(calls.queue_stats(name))

    # Below the calls

    def call(self, rpc: calls.Rpc[T]) -> T:
        """Make one call and return what it reads from the answer.

        Raises: ServiceError."""
        return self._call_until(rpc, time.monotonic() + self.config.timeout + rpc.extra_seconds)

    def start(self, rpc: calls.Rpc[Any]) -> _PendingCall:
        """Send a call without waiting for its answer; `result()` gives the response or raises grpc.RpcError."""
        method = getattr(self._connection().stubs[rpc.service], rpc.method)
        pending: _PendingCall = method.future(rpc.request, timeout=self.config.timeout)
        return pending

    def _send_creates(self, requests: Sequence[CreateTaskRequest], deadline: float) -> Mapping[int, ServiceError]:
        return self._call_until(calls.batch_create(requests), deadline)

    def _call_until(self, rpc: calls.Rpc[T], deadline: float) -> T:
        method = getattr(self._connection().stubs[rpc.service], rpc.method)
        unavailable: ServiceUnavailable | None = None
        for wait in calls.retry_waits():
            try:
                # Zero would mean no deadline to gRPC.
                return rpc.read(method(rpc.request, timeout=max(0.001, deadline - time.monotonic())))
            except grpc.RpcError as error:
                failure = calls.rpc_error(error, self.target)
                if isinstance(failure, DeadlineExceeded) and unavailable is not None:
                    raise unavailable from error  # The last moments of a long outage tell less than what came before.
                if not isinstance(failure, ServiceUnavailable) or not rpc.repeatable:
                    raise failure from error
                if time.monotonic() + wait >= deadline:
                    raise failure from error
                unavailable = failure
            time.sleep(wait)
        raise AssertionError("retry_waits() ends")

    def _connection(self) -> _Connection:
        connection = self._connected
        if connection is not None and connection.pid == os.getpid():
            return connection
        return self._connect()

    def _connect(self) -> _Connection:
        if self._connected is not None and self._connected.pid != os.getpid():
            _inherited.append(self._connected)
            # Another thread of the parent may have held it at the fork.
            self._lock = threading.Lock()
        with self._lock:
            if self._connected is None or self._connected.pid != os.getpid():
                self._connected = _Connection(self.target, self._send_creates)
            return self._connected


class Pipeline:
    """Sends many full batches, with the next on its way while the service commits the one before.

    Not thread-safe. `finish` must be called; it returns the errors of all refused tasks by their position."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._pending: deque[tuple[int, calls.Rpc[dict[int, ServiceError]], _PendingCall]] = deque()
        self._sent = 0
        self._failures: dict[int, ServiceError] = {}

    def send(self, requests: Sequence[CreateTaskRequest]) -> None:
        """Send one batch of at most 1,000, after the answer to the last but one.

        Raises: ServiceError if that one failed as a whole."""
        if len(self._pending) >= calls.BATCHES_IN_FLIGHT_MAX:
            self._collect()
        rpc = calls.batch_create(requests)
        self._pending.append((self._sent, rpc, self._client.start(rpc)))
        self._sent += len(requests)

    def finish(self) -> Mapping[int, ServiceError]:
        """Wait for all answers.

        Raises: ServiceError if a batch failed as a whole, after the others have been waited for."""
        error: ServiceError | None = None
        while self._pending:
            try:
                self._collect()
            except ServiceError as failure:
                error = error or failure
        if error is not None:
            raise error
        return self._failures

    def _collect(self) -> None:
        offset, rpc, pending = self._pending.popleft()
        try:
            response: BatchCreateTasksResponse = pending.result()
            failures = rpc.read(response)
        except grpc.RpcError as error:
            failure = calls.rpc_error(error, self._client.target)
            if not isinstance(failure, ServiceUnavailable):
                raise failure from error
            failures = self._client.call(rpc)
        self._failures.update({offset + index: failure for index, failure in failures.items()})


_default: Client | None = None


def default_client() -> Client:
    """Return the client of this process, made from its configuration at the first use and again after `configure`.

    Raises: ConfigError."""
    global _default
    if _default is None:
        _default = Client()
    return _default


def default_parent(client: Client, queue: str | None) -> str:
    """Return the resource name of the queue that a task goes to."""
    return queue_name(queue or client.config.queue)


def _drop_default() -> None:
    global _default
    _default = None


on_configure(_drop_default)
