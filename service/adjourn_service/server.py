"""Builds the service from its settings, serves until it is told to stop, and stops in order."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from adjourn.v1 import (
    lease_service_pb2,
    lease_service_pb2_grpc,
    queue_service_pb2,
    queue_service_pb2_grpc,
    task_service_pb2,
    task_service_pb2_grpc,
)
from adjourn_service.broker import Broker
from adjourn_service.clock import SystemClock
from adjourn_service.config import ServiceConfig
from adjourn_service.errors import ConfigError, ServiceError
from adjourn_service.rpc.interceptors import ErrorInterceptor
from adjourn_service.rpc.leases import Leases
from adjourn_service.rpc.queues import Queues
from adjourn_service.rpc.tasks import Tasks
from adjourn_service.store.base import Store
from adjourn_service.store.memory import MemoryStore
from adjourn_service.store.sqlite import SqliteStore

log = logging.getLogger(__name__)

SWITCH_INTERVAL_SECONDS: Final = 0.0005
"""The store's thread and the event loop share the GIL, and the store gives it up and wants it back with every
statement. Measured beside a busy loop: 9,000 rows a second in commits of 100 with Python's 5 ms, 60,000 with this."""

SERVICES: Final = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in ((queue_service_pb2, "Queues"), (task_service_pb2, "Tasks"), (lease_service_pb2, "Leases"))
)


def open_store(config: ServiceConfig) -> Store:
    """Open the store that the settings name. Raises: ConfigError."""
    window_us = round(config.idempotency_window * 1e6)
    path = config.sqlite_path()
    if path is None:
        return MemoryStore(idempotency_window_us=window_us)
    return SqliteStore(path, idempotency_window_us=window_us)


async def serve(config: ServiceConfig, ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is told the address once calls are accepted.

    Raises: ConfigError if the store cannot be opened or the address not be bound."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    service = Service(config)
    address = await service.start()
    if ready is not None:
        ready(address)
    await stopping.wait()
    await service.stop()


class Service:
    """The whole service on one event loop, from `start` to `stop`.

    Raises: ConfigError if the store cannot be opened."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        self._store = open_store(config)
        self._broker = Broker(self._store)
        self._leases = Leases(self._broker)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[
                ("grpc.max_receive_message_length", config.max_request_bytes),
                ("grpc.max_send_message_length", config.max_request_bytes),
                # Two services on one port would share it in silence.
                ("grpc.so_reuseport", 0),
                # Workers ping through silent networks while their tasks run for hours.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        tasks = Tasks(self._broker, SystemClock(), config.inline_limit)
        queue_service_pb2_grpc.add_QueuesServicer_to_server(Queues(self._broker), self._server)
        task_service_pb2_grpc.add_TasksServicer_to_server(tasks, self._server)
        lease_service_pb2_grpc.add_LeasesServicer_to_server(self._leases, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)

    async def start(self) -> str:
        """Begin to accept calls. Returns the address.

        Raises: ConfigError if the address cannot be bound or the store not be written; the store is closed then."""
        config = self._config
        try:
            port = self._bind()
            await self._broker.start()
        except BaseException as error:
            await self._broker.stop()
            self._store.close()
            if isinstance(error, ServiceError):
                raise ConfigError(f"cannot use the store {config.store}: {error}") from error
            raise
        await self._server.start()
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        address = f"{config.listen.rpartition(':')[0]}:{port}"
        log.info("listening", extra={"address": address, "store": config.store})
        return address

    async def stop(self) -> None:
        """Accept no more calls, let those under way end, commit what was accepted, and close the store."""
        log.info("stopping", extra={"grace_seconds": self._config.drain_grace})
        await self._health.enter_graceful_shutdown()
        # Waits and streams would last as long as the grace does, and then be cut off.
        self._leases.stop()
        self._broker.interrupt()
        await self._server.stop(self._config.drain_grace)
        await self._broker.stop()
        self._store.close()
        log.info("stopped")

    def _bind(self) -> int:
        try:
            return self._server.add_insecure_port(self._config.listen)
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {self._config.listen}: the port is in use, or the address is not this machine's;"
                " choose another with --listen"
            ) from error
