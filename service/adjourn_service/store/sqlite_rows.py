"""Rows, ids and the fragments of SQL that the parts of the SQLite store share."""

from array import array
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import apsw


class TaskRow(NamedTuple):
    """A task without its body: what the paths off the happy one work on."""

    seq: int
    uid: bytes
    queue_id: int
    rank: int
    due_at: int
    attempts: int
    history: int
    first_attempt_at: int | None
    name: str | None
    tag: str | None
    key: str | None
    retain_us: int | None
    retry: str | None
    state: int | None


class LeaseRow(NamedTuple):
    """A lease, without what only its own statements need."""

    seq: int
    nonce: int
    attempt: int
    leased_at: int
    worker_id: str


AMONG: Final = "seq IN (SELECT value FROM carray(?1))"
READY_KEYS: Final = f"SELECT queue_id, rank, due_at, seq FROM task WHERE {AMONG}"
LABEL_KEYS: Final = (
    f"SELECT queue_id, 't' || tag, rank, due_at, seq FROM task WHERE {AMONG} AND tag IS NOT NULL",
    f"SELECT queue_id, 'k' || key, rank, due_at, seq FROM task WHERE {AMONG} AND key IS NOT NULL",
)
"""Apart, because SQLite would look up a UNION of both by scanning the table that it is compared with."""
SELECT_TASK: Final = f"SELECT {', '.join(TaskRow._fields)} FROM task"
SELECT_LEASE: Final = f"SELECT {', '.join(LeaseRow._fields)} FROM lease"


def format_lease_id(seq: int, nonce: int) -> str:
    """Return the id of a lease as workers know it."""
    return f"{seq}.{nonce}"


def parse_lease_id(text: str) -> tuple[int, int]:
    """Return the numbers in a lease id; numbers that no lease has if it is none of ours."""
    seq, _, nonce = text.partition(".")
    try:
        found = int(seq), int(nonce)
    except ValueError:
        return -1, -1
    return found if max(map(abs, found)) < 1 << 63 else (-1, -1)


def numbers(values: Iterable[int]) -> Any:
    """Bind an array of integers, for `carray`."""
    return apsw.carray(array("q", values))


def labels(tag: str | None, key: str | None) -> list[str]:
    """Return the labels under which a ready task with this tag and key is found."""
    return [prefix + label for prefix, label in (("t", tag), ("k", key)) if label]
