"""The Leases service: single calls, and the stream of the shipped worker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, TypeAlias, cast

import grpc
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from adjourn.v1 import lease_service_pb2 as pb
from adjourn.v1 import lease_service_pb2_grpc as pb_grpc
from adjourn.v1 import task_pb2
from adjourn_service import names
from adjourn_service.broker import Broker
from adjourn_service.dispatcher import Demand
from adjourn_service.errors import InvalidField, LeaseLost, ShuttingDown
from adjourn_service.model import LeasedTask, Settlement
from adjourn_service.rpc import convert
from adjourn_service.rpc.status import to_status
from adjourn_service.rpc.validation import validate
from adjourn_service.store.base import Lost, Reconcile, Renew, Result, Settle

PUSH_BYTES: Final = 1 << 20
"""Bytes of task bodies after which a push is sent off and another begun, and which end the answer of a Lease: with the
largest task on top still under the 4 MiB that a gRPC client takes unless told otherwise."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Leases(pb_grpc.LeasesServicer):
    """Hands tasks to workers and takes back what became of them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._polls: set[asyncio.Future[list[LeasedTask]]] = set()
        self._sessions: set[_Session] = set()
        self._stopping = False

    def stop(self) -> None:
        """End every wait and every stream with ShuttingDown; a stream when all that it has settled is acknowledged."""
        self._stopping = True
        for poll in self._polls:
            if not poll.done():
                poll.set_exception(ShuttingDown())
        for session in self._sessions:
            session.end(ShuttingDown())

    async def Lease(self, request: pb.LeaseRequest, context: Context) -> pb.LeaseResponse:
        """Lease ready tasks, waiting for a first one as long as asked."""
        validate(request)
        _check_labels(request.tag, request.key)
        self._check_running()
        leased: asyncio.Future[list[LeasedTask]] = asyncio.get_running_loop().create_future()
        wait_seconds = convert.duration_us(request.wait) / 1e6
        first = True

        def deliver(tasks: list[LeasedTask]) -> None:
            nonlocal first
            if leased.done():
                self._broker.dispatcher.release(task.lease_id for task in tasks)
            elif tasks or (first and not wait_seconds):
                self._broker.dispatcher.close(demand)
                leased.set_result(tasks)
            first = False

        def failed(error: BaseException) -> None:
            if not leased.done():
                leased.set_exception(error)

        demand = Demand(
            request.worker_id,
            _queues(request.queues),
            deliver,
            failed,
            tag=request.tag,
            key=request.key,
            duration_us=convert.duration_us(request.lease_duration) or None,
        )
        self._polls.add(leased)
        self._broker.dispatcher.grant(demand, request.max_leases)
        try:
            await asyncio.wait([leased], timeout=wait_seconds or None)
        except asyncio.CancelledError:
            if leased.done() and leased.exception() is None:
                self._broker.dispatcher.release(task.lease_id for task in leased.result())
            raise
        finally:
            self._polls.discard(leased)
            # Leases that still come are given back.
            self._broker.dispatcher.close(demand)
        tasks = leased.result() if leased.done() else []
        response = pb.LeaseResponse()
        count = _fill(response.leases, tasks)
        self._broker.dispatcher.release(task.lease_id for task in tasks[count:])
        return response

    async def Renew(
        self,
        request: pb.RenewRequest,
        context: Context,
    ) -> pb.RenewResponse:
        """Prolong leases."""
        validate(request)
        duration_us = convert.duration_us(request.lease_duration) or None
        lost = cast("Lost", await self._broker.apply(Renew(list(request.lease_ids), duration_us)))
        response = pb.RenewResponse()
        for lease_id in lost:
            response.failed_leases[lease_id].CopyFrom(to_status(LeaseLost(lease_id)))
        return response

    async def Settle(
        self,
        request: pb.SettleRequest,
        context: Context,
    ) -> pb.SettleResponse:
        """End leases with their outcomes."""
        validate(request)
        settlements = [convert.settlement(settlement) for settlement in request.settlements]
        lost = cast("Lost", await self._broker.apply(Settle(others=settlements)))
        response = pb.SettleResponse()
        for lease_id in lost:
            response.failed_leases[lease_id].CopyFrom(to_status(LeaseLost(lease_id)))
        return response

    async def Work(
        self, request_iterator: AsyncIterator[pb.WorkRequest], context: Context
    ) -> AsyncIterator[pb.WorkResponse]:
        """Serve a worker for as long as its stream lasts."""
        self._check_running()
        session = _Session(self._broker, self._sessions)
        reader = asyncio.create_task(session.read(request_iterator))
        try:
            async for response in session.responses():
                yield response
        finally:
            reader.cancel()
            session.close()

    def _check_running(self) -> None:
        # A call may have been accepted just before the stop, and begin after it.
        if self._stopping:
            raise ShuttingDown


class _Session:
    """One Work stream: takes in what the worker says, and gathers what is to be said to it.

    `sessions` are those of all streams that are open."""

    def __init__(self, broker: Broker, sessions: "set[_Session]") -> None:
        self._broker = broker
        self._sessions = sessions
        self._demand: Demand | None = None
        self._news = asyncio.Event()
        self._error: BaseException | None = None
        self._ended = False
        self._farewell: ShuttingDown | None = None
        self._unanswered = 0
        """Operations whose outcome is still to be told before the stream may end."""
        self._leases: list[LeasedTask] = []
        self._acked = 0
        self._lost: list[str] = []
        self._cancelled: list[str] = []
        self._draining = False
        self._on_cancelled = self._cancel
        sessions.add(self)

    # --- from the worker

    async def read(self, requests: AsyncIterator[pb.WorkRequest]) -> None:
        """Take in the worker's messages until its stream ends."""
        try:
            async for request in requests:
                validate(request)
                self._take(request)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001
            self._fail(error)
        self.end()

    def _take(self, request: pb.WorkRequest) -> None:
        if request.HasField("hello"):
            self._greet(request.hello)
        demand = self._demand
        if demand is None:
            raise InvalidField({"hello": "the first message of a Work stream must have it"})
        if request.succeeded_lease_ids or request.settlements:
            settlements: list[Settlement] = [convert.settlement(item) for item in request.settlements]
            sequence = request.sequence
            self._unanswered += 1
            self._broker.submit(
                Settle(list(request.succeeded_lease_ids), settlements), lambda result: self._settled(sequence, result)
            )
        if request.renew_lease_ids:
            self._unanswered += 1
            self._broker.submit(Renew(list(request.renew_lease_ids)), self._found_lost)
        if request.drain:
            self._draining = True
            self._broker.dispatcher.withdraw(demand)
            self._news.set()
        elif request.credits and not self._draining:
            self._broker.dispatcher.grant(demand, request.credits)

    def _greet(self, hello: pb.WorkerHello) -> None:
        if self._demand is not None:
            raise InvalidField({"hello": "only the first message of a Work stream may have it"})
        _check_labels(hello.tag, hello.key, "hello.")
        for other in list(self._sessions):
            if other._demand is not None and other._demand.worker_id == hello.worker_id:  # noqa: SLF001
                # Its connection is broken, though nobody has noticed yet: leases pushed there would be lost.
                other.close()
                other.end()
        self._demand = Demand(
            hello.worker_id, _queues(hello.queues), self._deliver, self._fail, tag=hello.tag, key=hello.key
        )
        self._broker.connect(hello.worker_id, self._on_cancelled)
        self._unanswered += 1
        self._broker.submit(Reconcile(hello.worker_id, list(hello.held_lease_ids)), self._found_lost)

    # --- to the worker

    def _deliver(self, tasks: list[LeasedTask]) -> None:
        self._leases += tasks
        self._news.set()

    def _settled(self, sequence: int, result: Result | BaseException) -> None:
        if not isinstance(result, BaseException):
            self._acked = max(self._acked, sequence)
        self._found_lost(result)

    def _found_lost(self, result: Result | BaseException) -> None:
        self._unanswered -= 1
        if isinstance(result, BaseException):
            self._fail(result)
            return
        self._lost += cast("Lost", result)
        self._news.set()

    def _cancel(self, lease_ids: list[str]) -> None:
        self._cancelled += lease_ids
        self._news.set()

    def _fail(self, error: BaseException) -> None:
        """End the stream with an error: the worker connects again, and repeats what was not acknowledged."""
        self._error = self._error or error
        self._news.set()

    def end(self, farewell: ShuttingDown | None = None) -> None:
        """End the stream, with this error or without one, once all that the worker has sent is answered."""
        self._ended = True
        self._draining = True
        self._farewell = self._farewell or farewell
        if self._demand is not None:
            self._broker.dispatcher.withdraw(self._demand)
        self._news.set()

    async def responses(self) -> AsyncIterator[pb.WorkResponse]:
        """Yield what there is to say, gathered while the last message was being written."""
        told_drained = False
        while True:
            await self._news.wait()
            self._news.clear()
            if self._error is not None:
                raise self._error
            while self._leases or self._lost or self._cancelled or self._acked:
                yield self._gather()
            demand = self._demand
            if self._draining and not self._ended and not told_drained and demand is not None and not demand.asking:
                told_drained = True
                yield pb.WorkResponse(drained=True)
            if self._ended and not self._unanswered:
                if self._farewell is not None:
                    raise self._farewell
                return

    def _gather(self) -> pb.WorkResponse:
        response = pb.WorkResponse(
            acked_sequence=self._acked, lost_lease_ids=self._lost, cancelled_lease_ids=self._cancelled
        )
        self._acked, self._lost, self._cancelled = 0, [], []
        del self._leases[: _fill(response.leases, self._leases)]
        return response

    def close(self) -> None:
        """Forget the worker; leases that never left are given back."""
        self._sessions.discard(self)
        if self._demand is not None:
            self._broker.disconnect(self._demand.worker_id, self._on_cancelled)
            self._broker.dispatcher.close(self._demand)
        self._broker.dispatcher.release(task.lease_id for task in self._leases)
        self._leases = []


def _fill(leases: "RepeatedCompositeFieldContainer[task_pb2.Lease]", tasks: Sequence[LeasedTask]) -> int:
    """Write tasks into a message until it is large enough. Returns their number."""
    size = count = 0
    for count, task in enumerate(tasks, 1):  # noqa: B007
        convert.fill_lease(leases.add(), task)
        size += len(task.body)
        if size >= PUSH_BYTES:
            break
    return count


def _queues(selectors: "list[pb.QueueSelector] | object") -> tuple[str, ...] | None:
    queues = tuple(names.parse_queue_name(selector.queue) for selector in cast("list[pb.QueueSelector]", selectors))
    return None if names.ANY_QUEUE in queues else queues


def _check_labels(tag: str, key: str, path: str = "") -> None:
    if tag and key:
        problem = "exclude each other; give one of the two"
        raise InvalidField({f"{path}tag": f"tag and key {problem}", f"{path}key": f"tag and key {problem}"})
