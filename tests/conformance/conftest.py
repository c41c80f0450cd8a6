"""Every store, each on a clock that only the test moves."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adjourn_service.clock import ManualClock
from adjourn_service.model import SECOND_US
from adjourn_service.store.base import Store
from adjourn_service.store.memory import MemoryStore
from tests.factories import StoreDriver

WINDOW_US = 600 * SECOND_US

Opener = Callable[[], Store]


def _opener(kind: str, folder: Path, clock: ManualClock) -> Opener:
    if kind == "memory":
        return lambda: MemoryStore(clock, idempotency_window_us=WINDOW_US)
    if importlib.util.find_spec("adjourn_service.store.sqlite") is None:
        pytest.skip("adjourn_service.store.sqlite is not written yet")
    from adjourn_service.store.sqlite import SqliteStore

    return lambda: SqliteStore(folder / "adjourn.db", clock=clock, idempotency_window_us=WINDOW_US)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which store the test runs on."""
    return str(request.param)


@pytest.fixture
def store(kind: str, tmp_path: Path, clock: ManualClock) -> Iterator[StoreDriver]:
    """An empty store, driven by one verb for each operation."""
    driver = StoreDriver(_opener(kind, tmp_path, clock)(), clock)
    yield driver
    driver.store.close()


@pytest.fixture
def reopen(kind: str, tmp_path: Path, clock: ManualClock, store: StoreDriver) -> Callable[[], None]:
    """Closes the store and opens it again, as a restart of the service does."""
    if kind == "memory":
        pytest.skip("the memory store keeps nothing over a restart, by its definition")

    def close_and_open() -> None:
        store.store.close()
        store.store = _opener(kind, tmp_path, clock)()

    return close_and_open
