"""A running fake service, and a client configuration that points at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from adjourn import config as config_module
from adjourn.aio import default_async_client
from adjourn.config import configure
from tests.unit.client.fake_service import FakeService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(autouse=True)
def clean_configuration(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins as a process does: unconfigured."""
    for variable in ("TARGET", "TIMEOUT", "SIGNING_KEYS", "QUEUE", "MAIN"):
        monkeypatch.delenv(f"ADJOURN_{variable}", raising=False)
    configure()
    monkeypatch.setattr(config_module, "_current", None)
    yield
    configure()


@pytest.fixture
def service() -> Iterator[FakeService]:
    """A service, configured as the target."""
    running = FakeService()
    configure(target=running.target, timeout=20)
    yield running
    running.stop()


@pytest.fixture
async def aservice(service: FakeService) -> AsyncIterator[FakeService]:
    """The same, for asyncio: the loop's client is closed before the loop is."""
    yield service
    await default_async_client().close()
