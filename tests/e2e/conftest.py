"""The service on a real socket, in the test's own event loop."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import uuid_utils
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from adjourn.v1 import (
    lease_service_pb2_grpc,
    queue_service_pb2_grpc,
    task_pb2,
    task_service_pb2,
    task_service_pb2_grpc,
)
from adjourn_service.config import ServiceConfig
from adjourn_service.server import Service


@dataclass
class Refusal:
    """An error on the wire, its details unpacked."""

    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    metadata: dict[str, str]
    fields: dict[str, str]


def unpack(status: Status) -> Refusal:
    """Return what a google.rpc.Status says."""
    info, bad = ErrorInfo(), BadRequest()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(bad)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    fields = {violation.field: violation.description for violation in bad.field_violations}
    return Refusal(code, status.message, info.reason, info.domain, dict(info.metadata), fields)


async def refused(call: Awaitable[Any]) -> Refusal:
    """Make a call that has to be refused with details."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status is not None, caught.value
    return unpack(status)


def new_id() -> str:
    return str(uuid_utils.uuid7())


class Served:
    """A running service and stubs for it."""

    def __init__(self, service: Service, address: str) -> None:
        self.service = service
        self.address = address
        self.channel = grpc.aio.insecure_channel(address, [("grpc.max_send_message_length", -1)])
        self.queues = queue_service_pb2_grpc.QueuesStub(self.channel)
        self.tasks = task_service_pb2_grpc.TasksStub(self.channel)
        self.leases = lease_service_pb2_grpc.LeasesStub(self.channel)
        self._stopped = False

    async def create(self, queue: str = "default", task_id: str = "", **fields: Any) -> task_pb2.Task:
        """Make a task; returns its name and uid."""
        request = task_service_pb2.CreateTaskRequest(
            parent=f"queues/{queue}", task=task_pb2.Task(**fields), task_id=task_id, request_id=new_id()
        )
        return (await self.tasks.Create(request)).task

    async def get(self, name: str) -> task_pb2.Task:
        return (await self.tasks.Get(task_service_pb2.GetTaskRequest(name=name))).task

    async def state(self, name: str) -> "task_pb2.TaskState.ValueType":
        return (await self.get(name)).status.state

    async def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            await self.service.stop()

    async def close(self) -> None:
        await self.channel.close()
        await self.stop()


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts services, on an empty memory store and a free port unless the settings say otherwise."""
    running: list[Served] = []

    async def start(**settings: Any) -> Served:
        settings = {"listen": "127.0.0.1:0", "store": "memory:", "drain_grace": 0.0, **settings}
        service = Service(ServiceConfig(**settings))
        served = Served(service, await service.start())
        running.append(served)
        return served

    yield start
    for served in running:
        await served.close()


@pytest.fixture
async def served(serve: Serve) -> Served:
    """A service with the default settings on an empty memory store."""
    return await serve()
