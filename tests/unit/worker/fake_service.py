"""A small, honest service for tests of the worker: leases, settlements, expiry and fencing in memory, behind real gRPC.

Its state outlives `crash` and `start`, as that of the real one does on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from adjourn.payload import encode_call
from adjourn.v1 import lease_service_pb2 as pb
from adjourn.v1 import lease_service_pb2_grpc, task_pb2

PUSH_MAX = 256


@dataclass
class Task:
    """What the service knows of a task."""

    name: str
    payload: bytes
    keep_result: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    attempts: int = 0
    """Attempts granted and not released."""
    ends: list[pb.Settlement] = field(default_factory=list)
    """Ends of its attempts, OUTCOME_RELEASED included, in their order."""

    @property
    def last(self) -> pb.Settlement:
        """The last end."""
        return self.ends[-1]


@dataclass
class Granted:
    """A lease that has not ended."""

    task: Task
    worker_id: str
    expires_at: float


class FakeService(lease_service_pb2_grpc.LeasesServicer):
    """The service, with one queue."""

    def __init__(self, lease_seconds: int = 60) -> None:
        self.lease_seconds = lease_seconds
        self.tasks: dict[str, Task] = {}
        self.ready: deque[Task] = deque()
        self.leases: dict[str, Granted] = {}
        self.hellos: list[pb.WorkerHello] = []
        self.requests = 0
        self.renewals = 0
        self.refused: list[str] = []
        self.ignore_acks = False
        self.port = 0
        self._server: grpc.aio.Server | None = None
        self._streams: set[_Stream] = set()
        self._changed = asyncio.Event()
        self._numbers = itertools.count(1)

    @property
    def target(self) -> str:
        """Address for the worker."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Serve, on the same port as before if there was one."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        lease_service_pb2_grpc.add_LeasesServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def crash(self) -> None:
        """Be gone at once: streams break, unsent answers are lost."""
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None
        self._streams.clear()

    def defer(
        self,
        function: Any,
        *args: Any,
        keep_result: bool = False,
        payload: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Task:
        """Add one task."""
        name = f"queues/default/tasks/t{next(self._numbers)}"
        if payload is None:
            payload = encode_call(function, args, {}).payload
        task = Task(name, payload, keep_result, headers or {})
        self.tasks[name] = task
        self.ready.append(task)
        self.poke()
        return task

    def defer_many(self, count: int, function: Any, *args: Any) -> list[Task]:
        """Add many tasks with one payload."""
        payload = encode_call(function, args, {}).payload
        return [self.defer(None, payload=payload) for _ in range(count)]

    def cancel(self, task: Task) -> None:
        """Cancel a leased task."""
        for lease_id, granted in list(self.leases.items()):
            if granted.task is task:
                del self.leases[lease_id]
                for stream in self._streams:
                    stream.answer.cancelled_lease_ids.append(lease_id)
        self.poke()

    def poke(self) -> None:
        """Have streams and waiters look again."""
        self._changed.set()
        for stream in self._streams:
            stream.wake.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition()` holds; it is looked at after every change."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def settled(self) -> None:
        """Wait until no task is ready or leased."""
        await self.until(lambda: not self.ready and not self.leases)

    def leased(self, task: Task) -> bool:
        """Tell whether a worker has the task."""
        return any(granted.task is task for granted in self.leases.values())

    def leased_names(self) -> set[str]:
        """Return the names of the tasks that workers have."""
        return {granted.task.name for granted in self.leases.values()}

    async def Lease(self, request, context):  # noqa: N802
        raise NotImplementedError

    async def Renew(self, request, context):  # noqa: N802
        raise NotImplementedError

    async def Settle(self, request, context):  # noqa: N802
        raise NotImplementedError

    async def Work(self, request_iterator, context):  # noqa: N802
        stream = _Stream()
        self._streams.add(stream)
        reading = asyncio.create_task(self._read(stream, request_iterator))
        try:
            while True:
                await stream.wake.wait()
                stream.wake.clear()
                while (response := self._next(stream)) is not None:
                    yield response
        finally:
            reading.cancel()
            self._streams.discard(stream)

    async def _read(self, stream: _Stream, requests: Any) -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.CancelledError):
            async for request in requests:
                self.requests += 1
                self._apply(stream, request)
                self.poke()

    def _apply(self, stream: _Stream, request: pb.WorkRequest) -> None:
        if request.HasField("hello"):
            self.hellos.append(request.hello)
            stream.worker_id = request.hello.worker_id
            held = set(request.hello.held_lease_ids)
            for lease_id, granted in list(self.leases.items()):
                if granted.worker_id == stream.worker_id and lease_id not in held:
                    self._end(pb.Settlement(lease_id=lease_id, outcome=pb.OUTCOME_RELEASED), stream)
        stream.credits += request.credits
        for lease_id in request.succeeded_lease_ids:
            self._end(pb.Settlement(lease_id=lease_id, outcome=pb.OUTCOME_SUCCEEDED), stream)
        for settlement in request.settlements:
            self._end(settlement, stream)
        if request.sequence and not self.ignore_acks:
            stream.answer.acked_sequence = request.sequence
        for lease_id in request.renew_lease_ids:
            if lease_id in self.leases:
                self.renewals += 1
                self.leases[lease_id].expires_at = asyncio.get_running_loop().time() + self.lease_seconds
            else:
                stream.answer.lost_lease_ids.append(lease_id)
        if request.drain:
            stream.credits = 0
            stream.answer.drained = True

    def _end(self, settlement: pb.Settlement, stream: _Stream) -> None:
        granted = self.leases.pop(settlement.lease_id, None)
        if granted is None:
            self.refused.append(settlement.lease_id)
            stream.answer.lost_lease_ids.append(settlement.lease_id)
            return
        granted.task.ends.append(settlement)
        if settlement.outcome == pb.OUTCOME_RELEASED:
            granted.task.attempts -= 1
        if settlement.outcome in (pb.OUTCOME_RELEASED, pb.OUTCOME_RETRY, pb.OUTCOME_CRASHED):
            self.ready.append(granted.task)

    def _next(self, stream: _Stream) -> pb.WorkResponse | None:
        leases: list[task_pb2.Lease] = []
        while stream.credits and self.ready and len(leases) < PUSH_MAX:
            stream.credits -= 1
            leases.append(self._grant(self.ready.popleft(), stream.worker_id))
        answer, stream.answer = stream.answer, pb.WorkResponse()
        answer.leases.extend(leases)
        if stream.credits and self.ready:
            stream.wake.set()
        return answer if answer.ByteSize() else None

    def _grant(self, task: Task, worker_id: str) -> task_pb2.Lease:
        loop = asyncio.get_running_loop()
        task.attempts += 1
        lease_id = f"lease-{next(self._numbers)}"
        self.leases[lease_id] = Granted(task, worker_id, loop.time() + self.lease_seconds)
        loop.call_later(self.lease_seconds, self._expire, lease_id)
        self._changed.set()
        lease = task_pb2.Lease(lease_id=lease_id, attempt=task.attempts, keep_result=task.keep_result)
        lease.task.name = task.name
        lease.task.payload = task.payload
        lease.task.headers.update(task.headers)
        lease.duration.seconds = self.lease_seconds
        return lease

    def _expire(self, lease_id: str) -> None:
        granted = self.leases.get(lease_id)
        if granted is None:
            return
        loop = asyncio.get_running_loop()
        if granted.expires_at > loop.time():
            loop.call_at(granted.expires_at, self._expire, lease_id)
            return
        del self.leases[lease_id]
        self.ready.append(granted.task)
        self.poke()


class _Stream:
    def __init__(self) -> None:
        self.worker_id = ""
        self.credits = 0
        self.answer = pb.WorkResponse()
        self.wake = asyncio.Event()
