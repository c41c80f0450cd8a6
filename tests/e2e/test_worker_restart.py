"""`adjourn worker` against the service itself, killed under load."""

import asyncio
import contextlib
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
import uuid_utils
from tests.unit.worker import tasks

from adjourn.payload import encode_call
from adjourn.v1 import queue_service_pb2, queue_service_pb2_grpc, task_pb2, task_service_pb2, task_service_pb2_grpc

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SERVE = """
import asyncio, sys
from adjourn_service.config import ServiceConfig
from adjourn_service.server import serve
config = ServiceConfig(listen=sys.argv[1], store=f"sqlite:///{sys.argv[2]}")
asyncio.run(serve(config, ready=lambda address: print(address, flush=True)))
"""
WORK = "from adjourn.worker.cli import worker; worker()"


class Service:
    """The service as a process that keeps its address and its store over its lives."""

    def __init__(self, folder: Path) -> None:
        self.address = "127.0.0.1:0"
        self._store = folder / "adjourn.db"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", SERVE, self.address, str(self._store), stdout=asyncio.subprocess.PIPE, env=ENVIRONMENT
        )
        assert self._process.stdout is not None
        self.address = (await self._process.stdout.readline()).decode().strip()

    async def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.communicate()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(tmp_path)
    await service.start()
    yield service
    await service.kill()


async def stats(service: Service, until: Callable[[queue_service_pb2.GetQueueStatsResponse], bool]) -> None:
    """Ask for the counters of the queue until they are as wanted."""
    async with grpc.aio.insecure_channel(service.address) as channel:
        queues = queue_service_pb2_grpc.QueuesStub(channel)
        request = queue_service_pb2.GetQueueStatsRequest(name="queues/default")
        while not until(await queues.GetStats(request)):
            pass


async def test_kills_of_the_service_under_load_lose_and_repeat_nothing(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "ran"
    async with grpc.aio.insecure_channel(service.address) as channel:
        stub = task_service_pb2_grpc.TasksStub(channel)
        for start in range(0, 4000, 1000):
            calls = [encode_call(tasks.append, (str(path), number), {}) for number in range(start, start + 1000)]
            response = await stub.BatchCreate(
                task_service_pb2.BatchCreateTasksRequest(
                    requests=[
                        task_service_pb2.CreateTaskRequest(
                            parent="queues/default",
                            request_id=str(uuid_utils.uuid7()),
                            task=task_pb2.Task(payload=call.payload, callable=call.callable),
                        )
                        for call in calls
                    ]
                )
            )
            assert not response.failed_requests
    with (tmp_path / "worker.log").open("wb") as log:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORK, "-p", "2", "--target", service.address, cwd=ROOT, env=ENVIRONMENT, stderr=log
        )
    try:
        for least in (500, 1500, 2500):
            await stats(service, lambda response, least=least: response.stats.succeeded_total >= least)  # type: ignore[misc]
            await service.kill()
            await service.start()
        await stats(service, lambda response: response.stats.succeeded_total == 4000)
        worker.terminate()
        assert await worker.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()
    ran = Counter(map(int, path.read_text().split()))
    assert len(ran) == 4000
    # The worker lived through it and its leases with it, so nothing had a reason to run twice.
    assert set(ran.values()) == {1}
