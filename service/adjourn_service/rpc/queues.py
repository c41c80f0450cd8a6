"""The Queues service."""

import asyncio
from bisect import bisect_right
from typing import Any, Final, TypeAlias, cast

import grpc

from adjourn.v1 import queue_service_pb2 as pb
from adjourn.v1 import queue_service_pb2_grpc as pb_grpc
from adjourn_service import names
from adjourn_service.broker import Broker
from adjourn_service.errors import InvalidField
from adjourn_service.model import Queue
from adjourn_service.rpc import convert
from adjourn_service.rpc.validation import validate
from adjourn_service.store.base import CreateQueue, PauseQueue, UpdateQueue

DEFAULT_PAGE_SIZE: Final = 100

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Queues(pb_grpc.QueuesServicer):
    """The queues, their policies and their numbers."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._updating = asyncio.Lock()

    async def Create(self, request: pb.CreateQueueRequest, context: Context) -> pb.CreateQueueResponse:
        """Make a queue."""
        validate(request)
        queue = names.parse_queue_name(request.queue.name)
        if queue == names.ANY_QUEUE:
            raise InvalidField({"queue.name": "'-' stands for all queues and cannot be the name of one"})
        made = await self._broker.apply(CreateQueue(queue, convert.queue_policy(request.queue)))
        return pb.CreateQueueResponse(queue=convert.queue_to_proto(cast("Queue", made)))

    async def Get(self, request: pb.GetQueueRequest, context: Context) -> pb.GetQueueResponse:
        """Read a queue."""
        validate(request)
        queue = await self._broker.get_queue(names.parse_queue_name(request.name))
        return pb.GetQueueResponse(queue=convert.queue_to_proto(queue))

    async def List(self, request: pb.ListQueuesRequest, context: Context) -> pb.ListQueuesResponse:
        """List queues by name."""
        validate(request)
        queues = await self._broker.list_queues()
        after = convert.page_cursor(request.page_token, "queues")
        first = 0 if after is None else bisect_right([queue.id for queue in queues], after)
        last = first + (request.page_size or DEFAULT_PAGE_SIZE)
        page = queues[first:last]
        return pb.ListQueuesResponse(
            queues=[convert.queue_to_proto(queue) for queue in page],
            next_page_token=convert.page_token(page[-1].id if last < len(queues) else None, "queues"),
        )

    async def Update(self, request: pb.UpdateQueueRequest, context: Context) -> pb.UpdateQueueResponse:
        """Change a queue's policy."""
        validate(request)
        mask = request.update_mask if request.HasField("update_mask") else None
        # The store takes whole policies: of two updates of different fields at a time, one would undo the other.
        async with self._updating:
            queue = await self._broker.get_queue(names.parse_queue_name(request.queue.name))
            policy = convert.updated_policy(queue, request.queue, mask)
            changed = await self._broker.apply(UpdateQueue(queue.id, policy))
        return pb.UpdateQueueResponse(queue=convert.queue_to_proto(cast("Queue", changed)))

    async def Delete(self, request: pb.DeleteQueueRequest, context: Context) -> pb.DeleteQueueResponse:
        """Remove a queue."""
        validate(request)
        await self._broker.delete_queue(names.parse_queue_name(request.name), force=request.force)
        return pb.DeleteQueueResponse()

    async def Pause(self, request: pb.PauseQueueRequest, context: Context) -> pb.PauseQueueResponse:
        """Stop handing out leases."""
        validate(request)
        queue = await self._broker.apply(PauseQueue(names.parse_queue_name(request.name), paused=True))
        return pb.PauseQueueResponse(queue=convert.queue_to_proto(cast("Queue", queue)))

    async def Resume(self, request: pb.ResumeQueueRequest, context: Context) -> pb.ResumeQueueResponse:
        """Hand out leases again."""
        validate(request)
        queue = await self._broker.apply(PauseQueue(names.parse_queue_name(request.name), paused=False))
        return pb.ResumeQueueResponse(queue=convert.queue_to_proto(cast("Queue", queue)))

    async def Purge(self, request: pb.PurgeQueueRequest, context: Context) -> pb.PurgeQueueResponse:
        """Remove every task of a queue."""
        validate(request)
        return pb.PurgeQueueResponse(purged_count=await self._broker.purge(names.parse_queue_name(request.name)))

    async def GetStats(self, request: pb.GetQueueStatsRequest, context: Context) -> pb.GetQueueStatsResponse:
        """Read the counters of a queue."""
        validate(request)
        queue = names.parse_queue_name(request.name)
        return pb.GetQueueStatsResponse(stats=convert.stats_to_proto(queue, await self._broker.get_stats(queue)))
