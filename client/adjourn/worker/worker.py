"""Composition and life cycle of a worker: start, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING, Final

import grpc

from adjourn.worker.link import Link
from adjourn.worker.pool import Pool
from adjourn.worker.settings import ChildSettings

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from adjourn.worker.config import WorkerConfig

logger = logging.getLogger("adjourn.worker")

DELIVER_SECONDS_MAX: Final = 5.0
"""For the last settlements to be acknowledged. What is not delivered runs again when its lease expires."""
DELIVER_SECONDS_AT_ONCE: Final = 1.0
"""The same after a second signal."""

_CHANNEL_OPTIONS: Final = (
    # A push holds as many leases as there is credit, each with up to 1 MiB of payload.
    ("grpc.max_receive_message_length", 256 * 1024 * 1024),
    # Finds a silent network while tasks run for hours.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The link does the waiting between attempts; the channel must not add to it.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class Worker:
    """One worker process: its link to the service and its pool of children."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends the draining. Call on the main thread."""
        asyncio.run(self._serve_with_signals())

    def stop(self) -> None:
        """Begin to drain; the second call ends it at once. On the event loop's thread."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    async def serve(self) -> None:
        """Serve until `stop`, then drain. Leaves signals alone."""
        config = self._config
        async with grpc.aio.insecure_channel(config.target, options=_CHANNEL_OPTIONS) as channel:
            link = Link(channel, config.target, config.worker_id, [f"queues/{name}" for name in config.queues])
            settings = ChildSettings(config.modules, config.main_file, config.log_level)
            pool = Pool(settings, config.processes, config.prefetch, config.worker_id, link)
            logger.info("worker started worker_id=%s processes=%d", config.worker_id, config.processes)
            async with asyncio.TaskGroup() as group:
                linking = group.create_task(link.run(pool))
                group.create_task(pool.run())
                await self._stop.wait()
                await self._drain(link, pool)
                linking.cancel()
        logger.info("worker stopped worker_id=%s", config.worker_id)

    async def _serve_with_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await self.serve()

    async def _drain(self, link: Link, pool: Pool) -> None:
        logger.info("draining held=%d grace_seconds=%g", pool.held, self._config.grace_seconds)
        link_drained = asyncio.create_task(link.drain())
        if await self._ends_in_time(pool.drain()):
            pool.close()
        else:
            logger.warning("tasks did not end in time and are released running=%d", pool.held)
            pool.discard()
            await pool.drain()
        # Leases that were on their way when the credit was taken back are to be released, too.
        seconds = DELIVER_SECONDS_AT_ONCE if self._stop_now.is_set() else DELIVER_SECONDS_MAX
        try:
            async with asyncio.timeout(seconds):
                await link_drained
                await link.delivered()
        except TimeoutError:
            logger.warning("the service did not acknowledge every settlement; what is missing runs again")

    async def _ends_in_time(self, work: Coroutine[Any, Any, None]) -> bool:
        """Await `work` for the grace time, or until a second stop. Return whether it was done."""
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stop_now.wait())
        try:
            await asyncio.wait(
                (working, stopping), timeout=self._config.grace_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            return working.done()
        finally:
            working.cancel()
            stopping.cancel()
