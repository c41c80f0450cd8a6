"""No statement of the SQLite store reads a table that grows with the backlog from end to end."""

import re
import time
from pathlib import Path

import pytest
import uuid_utils

from adjourn_service.clock import ManualClock
from adjourn_service.model import NewTask, Outcome, Settlement, TaskError
from adjourn_service.store.base import (
    Cancel,
    Create,
    Delete,
    Lease,
    Leased,
    Maintain,
    Purge,
    Reconcile,
    Renew,
    Retry,
    Run,
    Settle,
)
from adjourn_service.store.sqlite import SqliteStore

# Leases are as many as the workers can hold, and a worker connects seldom.
MAY_SCAN = {"lease"}


def new_tasks(count: int, **options: object) -> list[NewTask]:
    return [NewTask(uuid_utils.uuid7().bytes, "default", b"body", **options) for _ in range(count)]  # type: ignore[arg-type]


@pytest.fixture
def statements(tmp_path: Path):
    """Run every path of the store once, and give its connection and the statements it ran."""
    clock = ManualClock(time.time_ns() // 1000)
    store = SqliteStore(tmp_path / "adjourn.db", clock)
    seen: dict[str, None] = {}
    store._db.exec_trace = lambda _cursor, sql, _bindings: seen.setdefault(sql) is None
    twice = new_tasks(1) * 2
    store.apply([Create(new_tasks(5)), Create(twice), Create(new_tasks(2, tag="a", key="b"))])
    store.apply([Create(new_tasks(1, name="n")), Create(new_tasks(2, countdown_us=1000, tag="a", retain_us=5))])
    first = leased(store, Lease(None, 3, "w"))
    leased(store, Lease(("default",), 1, "w", tag="a"))
    leased(store, Lease(None, 30, "w"))
    retry = Settlement(first[1], Outcome.RETRY, error=TaskError("x"), delay_us=10)
    failed = Settlement(first[2], Outcome.FAILED, error=TaskError("x"))
    store.apply([Renew(first), Settle(first[:1], [retry, failed]), Reconcile("w", [])], watched={b"some"})
    store.apply([Cancel("default", "n"), Retry("default", "n"), Run("default", "n"), Delete("default", "n")])
    for _ in range(3):
        clock.advance(700_000_000)
        store.apply([Maintain(), Lease(None, 30, "w")])
    store.apply([Purge("default")], watched={b"some"})
    store._db.exec_trace = None
    yield store._db, [sql for sql in seen if sql.split()[0] not in ("BEGIN", "COMMIT", "ROLLBACK")]
    store.close()


def leased(store: SqliteStore, lease: Lease) -> list[str]:
    (result,) = store.apply([lease]).results
    assert isinstance(result, Leased)
    return [task.lease_id for task in result.tasks]


def test_no_statement_scans_a_table_that_grows(statements) -> None:
    connection, seen = statements
    assert len(seen) > 40
    scans = []
    for sql in seen:
        numbered = set(re.findall(r"\?\d+", sql))
        bindings = (None,) * (len(numbered) or sql.count("?"))
        for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {sql}", bindings):
            scanned = re.match(r"SCAN (\w+)", step)
            harmless = "VIRTUAL TABLE" in step or "CONSTANT ROW" in step or "queue" in step or "(subquery" in step
            if scanned and not harmless and scanned[1] not in MAY_SCAN:
                scans.append(f"{step}: {sql}")
    assert scans == []
