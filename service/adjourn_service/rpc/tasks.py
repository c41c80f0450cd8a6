"""The Tasks service."""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias, cast

import grpc

from adjourn.v1 import task_pb2
from adjourn.v1 import task_service_pb2 as pb
from adjourn.v1 import task_service_pb2_grpc as pb_grpc
from adjourn_service import names
from adjourn_service.broker import Broker
from adjourn_service.clock import Clock
from adjourn_service.errors import PageTokenInvalid
from adjourn_service.model import TaskRecord
from adjourn_service.rpc import convert
from adjourn_service.rpc.status import to_status
from adjourn_service.rpc.validation import validate
from adjourn_service.store.base import Cancel, Create, Delete, Retry, Run

DEFAULT_PAGE_SIZE: Final = 100
DEFAULT_WAIT_US: Final = 30_000_000

PAGE_BYTES: Final = 1 << 20
"""Bytes of tasks that end a page: with the largest payload on top still under the 4 MiB that a gRPC client takes unless
told otherwise."""

CURSOR_MAX: Final = (1 << 63) - 2
"""The largest cursor after which there can be another: a token that was tampered with may hold more."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Tasks(pb_grpc.TasksServicer):
    """Makes tasks, and shows and steers single ones. `inline_limit` bounds a payload, in bytes."""

    def __init__(self, broker: Broker, clock: Clock, inline_limit: int) -> None:
        self._broker = broker
        self._clock = clock
        self._inline_limit = inline_limit

    async def Create(self, request: pb.CreateTaskRequest, context: Context) -> pb.CreateTaskResponse:
        """Make one task."""
        validate(request)
        task = convert.new_task(request, self._inline_limit, self._clock.now())
        refusals = await self._broker.create(Create([task]))
        if refusals:
            raise refusals[0]
        response = pb.CreateTaskResponse()
        response.task.name = names.task_name(task.queue, task.name, task.uid)
        response.task.uid = names.format_uid(task.uid)
        return response

    async def BatchCreate(self, request: pb.BatchCreateTasksRequest, context: Context) -> pb.BatchCreateTasksResponse:
        """Make up to 1,000 tasks in one commit."""
        creates = convert.new_tasks(request, self._inline_limit, self._clock.now())
        if creates.tasks:
            refused = await self._broker.create(Create(creates.tasks))
            creates.refusals.update((creates.indices[position], error) for position, error in refused.items())
        response = pb.BatchCreateTasksResponse()
        for index, error in creates.refusals.items():
            response.failed_requests[index].CopyFrom(to_status(error))
        return response

    async def Get(self, request: pb.GetTaskRequest, context: Context) -> pb.GetTaskResponse:
        """Read a task."""
        validate(request)
        record = await self._broker.get_task(*names.parse_task_name(request.name))
        return pb.GetTaskResponse(task=convert.task_to_proto(record, request.view or task_pb2.TASK_VIEW_FULL))

    async def List(self, request: pb.ListTasksRequest, context: Context) -> pb.ListTasksResponse:
        """List tasks."""
        validate(request)
        wanted = convert.task_filter(request)
        cursor = convert.page_cursor(request.page_token, wanted)
        after = None if cursor is None else _position(cursor)
        view = request.view or task_pb2.TASK_VIEW_BASIC
        page = await self._broker.list_tasks(wanted, request.page_size or DEFAULT_PAGE_SIZE, after)
        tasks = [convert.task_to_proto(record, view) for record in page.tasks]
        fitting = _fitting(tasks)
        if fitting < len(tasks):
            # Only the store knows the cursor behind the last task that fits.
            page = await self._broker.list_tasks(wanted, fitting, after)
            tasks = [convert.task_to_proto(record, view) for record in page.tasks]
        return pb.ListTasksResponse(tasks=tasks, next_page_token=convert.page_token(page.cursor, wanted))

    async def Cancel(self, request: pb.CancelTaskRequest, context: Context) -> pb.CancelTaskResponse:
        """End a task that has not ended."""
        validate(request)
        return pb.CancelTaskResponse(
            task=_basic(await self._broker.apply(Cancel(*names.parse_task_name(request.name))))
        )

    async def Delete(self, request: pb.DeleteTaskRequest, context: Context) -> pb.DeleteTaskResponse:
        """Remove a task."""
        validate(request)
        await self._broker.apply(Delete(*names.parse_task_name(request.name)))
        return pb.DeleteTaskResponse()

    async def Run(self, request: pb.RunTaskRequest, context: Context) -> pb.RunTaskResponse:
        """Make a scheduled task ready."""
        validate(request)
        return pb.RunTaskResponse(task=_basic(await self._broker.apply(Run(*names.parse_task_name(request.name)))))

    async def Retry(self, request: pb.RetryTaskRequest, context: Context) -> pb.RetryTaskResponse:
        """Make a dead or cancelled task ready again."""
        validate(request)
        return pb.RetryTaskResponse(task=_basic(await self._broker.apply(Retry(*names.parse_task_name(request.name)))))

    async def Wait(self, request: pb.WaitTaskRequest, context: Context) -> pb.WaitTaskResponse:
        """Wait for the end of a task."""
        validate(request)
        timeout_us = convert.duration_us(request.timeout) if request.HasField("timeout") else DEFAULT_WAIT_US
        record = await self._broker.wait_task(*names.parse_task_name(request.name), timeout_us)
        return pb.WaitTaskResponse(task=convert.task_to_proto(record, task_pb2.TASK_VIEW_FULL))


def _position(cursor: str) -> int:
    """Return the store's cursor in a page token's. Raises: PageTokenInvalid."""
    try:
        position = int(cursor)
    except ValueError as error:
        raise PageTokenInvalid from error
    if not 0 <= position <= CURSOR_MAX:
        raise PageTokenInvalid
    return position


def _fitting(tasks: Sequence[task_pb2.Task]) -> int:
    """Return how many of the tasks make a page: the one that fills it is its last."""
    size = 0
    for count, task in enumerate(tasks, 1):
        size += task.ByteSize()
        if size >= PAGE_BYTES:
            return count
    return len(tasks)


def _basic(result: object) -> task_pb2.Task:
    return convert.task_to_proto(cast("TaskRecord", result), task_pb2.TASK_VIEW_BASIC)
