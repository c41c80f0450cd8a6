"""The link's life with streams that break."""

import asyncio

import grpc
import pytest

from adjourn.worker.link import Link


class BreakingCall:
    """A stream that breaks while its writer takes its time to stop."""

    def __init__(self) -> None:
        self.writing = asyncio.Event()
        self.stopping = asyncio.Event()
        self.stopped = asyncio.Event()

    async def write(self, _request: object) -> None:
        self.writing.set()
        try:
            await asyncio.Future()
        finally:
            self.stopping.set()
            await self.stopped.wait()

    async def read(self) -> object:
        await self.writing.wait()
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "the service has gone"
        )

    def cancel(self) -> None:
        pass


class IdleTaker:
    target = held = 0


@pytest.mark.timeout(20)
async def test_a_link_that_is_cancelled_while_its_stream_breaks_ends() -> None:
    call = BreakingCall()
    opened = []

    def work() -> BreakingCall:
        opened.append(call)
        return call

    async with grpc.aio.insecure_channel("localhost:1") as channel:
        link = Link(channel, "localhost:1", "worker", ["queues/-"])
        link._stub.Work = work  # type: ignore[method-assign, assignment]
        running = asyncio.create_task(link.run(IdleTaker()))  # type: ignore[arg-type]
        # The stream has broken, and the group of reader and writer waits for the latter.
        await call.stopping.wait()
        running.cancel()
        await asyncio.sleep(0)
        call.stopped.set()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert opened == [call]
