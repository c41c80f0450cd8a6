"""The Leases service: single calls, and the stream of the shipped worker."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, TypeAlias, cast

import grpc

from adjourn.v1 import lease_service_pb2 as pb
from adjourn.v1 import lease_service_pb2_grpc as pb_grpc
from adjourn_service import names
from adjourn_service.broker import Broker
from adjourn_service.dispatcher import Demand
from adjourn_service.errors import InvalidField, LeaseLost
from adjourn_service.model import LeasedTask, Settlement
from adjourn_service.rpc import convert
from adjourn_service.rpc.status import to_status
from adjourn_service.rpc.validation import validate
from adjourn_service.store.base import Lost, Reconcile, Renew, Result, Settle

PUSH_BYTES: Final = 1 << 20
"""Bytes of task bodies after which a push is sent off and another begun: well under gRPC's limit for a message."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Leases(pb_grpc.LeasesServicer):
    """Hands tasks to workers and takes back what became of them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def Lease(self, request: pb.LeaseRequest, context: Context) -> pb.LeaseResponse:
        """Lease ready tasks, waiting for a first one as long as asked."""
        validate(request)
        _check_labels(request.tag, request.key)
        leased: asyncio.Future[list[LeasedTask]] = asyncio.get_running_loop().create_future()
        wait_seconds = convert.duration_us(request.wait) / 1e6
        first = True

        def deliver(tasks: list[LeasedTask]) -> None:
            nonlocal first
            if tasks or (first and not wait_seconds):
                self._broker.dispatcher.close(demand)
                leased.set_result(tasks)
            first = False

        def failed(error: BaseException) -> None:
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
        self._broker.dispatcher.grant(demand, request.max_leases)
        try:
            await asyncio.wait([leased], timeout=wait_seconds or None)
        except asyncio.CancelledError:
            if leased.done() and leased.exception() is None:
                self._broker.dispatcher.release(task.lease_id for task in leased.result())
            raise
        finally:
            # Leases that still come are given back.
            self._broker.dispatcher.close(demand)
        tasks = leased.result() if leased.done() else []
        response = pb.LeaseResponse()
        for task in tasks:
            convert.fill_lease(response.leases.add(), task)
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
        session = _Session(self._broker)
        reader = asyncio.create_task(session.read(request_iterator))
        try:
            async for response in session.responses():
                yield response
        finally:
            reader.cancel()
            session.close()


class _Session:
    """One Work stream: takes in what the worker says, and gathers what is to be said to it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._demand: Demand | None = None
        self._news = asyncio.Event()
        self._error: BaseException | None = None
        self._ended = False
        self._leases: list[LeasedTask] = []
        self._acked = 0
        self._lost: list[str] = []
        self._cancelled: list[str] = []
        self._draining = False
        self._on_cancelled = self._cancel

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
        self._ended = True
        self._news.set()

    def _take(self, request: pb.WorkRequest) -> None:
        if request.HasField("hello"):
            self._greet(request.hello)
        demand = self._demand
        if demand is None:
            raise InvalidField({"hello": "the first message of a Work stream must have it"})
        if request.succeeded_lease_ids or request.settlements:
            settlements: list[Settlement] = [convert.settlement(item) for item in request.settlements]
            sequence = request.sequence
            self._broker.submit(
                Settle(list(request.succeeded_lease_ids), settlements), lambda result: self._settled(sequence, result)
            )
        if request.renew_lease_ids:
            self._broker.submit(Renew(list(request.renew_lease_ids)), self._found_lost)
        if request.drain:
            self._draining = True
            self._broker.dispatcher.withdraw(demand)
            self._news.set()
        elif request.credits:
            self._broker.dispatcher.grant(demand, request.credits)

    def _greet(self, hello: pb.WorkerHello) -> None:
        if self._demand is not None:
            raise InvalidField({"hello": "only the first message of a Work stream may have it"})
        _check_labels(hello.tag, hello.key)
        self._demand = Demand(
            hello.worker_id, _queues(hello.queues), self._deliver, self._fail, tag=hello.tag, key=hello.key
        )
        self._broker.connect(hello.worker_id, self._on_cancelled)
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
            if self._draining and not told_drained and demand is not None and not demand.asking:
                told_drained = True
                yield pb.WorkResponse(drained=True)
            if self._ended:
                return

    def _gather(self) -> pb.WorkResponse:
        response = pb.WorkResponse(
            acked_sequence=self._acked, lost_lease_ids=self._lost, cancelled_lease_ids=self._cancelled
        )
        self._acked, self._lost, self._cancelled = 0, [], []
        size = count = 0
        for count, task in enumerate(self._leases, 1):  # noqa: B007
            convert.fill_lease(response.leases.add(), task)
            size += len(task.body)
            if size >= PUSH_BYTES:
                break
        del self._leases[:count]
        return response

    def close(self) -> None:
        """Forget the worker; leases that never left are given back."""
        if self._demand is not None:
            self._broker.disconnect(self._demand.worker_id, self._on_cancelled)
            self._broker.dispatcher.close(self._demand)
        self._broker.dispatcher.release(task.lease_id for task in self._leases)
        self._leases = []


def _queues(selectors: "list[pb.QueueSelector] | object") -> tuple[str, ...] | None:
    queues = tuple(names.parse_queue_name(selector.queue) for selector in cast("list[pb.QueueSelector]", selectors))
    return None if names.ANY_QUEUE in queues else queues


def _check_labels(tag: str, key: str) -> None:
    if tag and key:
        raise InvalidField({"tag": "excludes key; give one of the two", "key": "excludes tag; give one of the two"})
