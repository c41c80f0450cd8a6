"""Opening a SQLite store's file: settings, the lock against other processes, and what SQLite's errors mean."""

import fcntl
from pathlib import Path
from typing import IO, Final

import apsw

from adjourn_service.errors import ConfigError, ServiceError, StoreFull, StoreUnavailable

BUSY_TIMEOUT_MS: Final = 5000
"""How long a commit waits for another program that reads or copies the file."""

CHECKPOINT_PAGES: Final = 4000
"""Pages in the log before they are written back, 16 MB: four times SQLite's default, since most pages of a queue are
written again soon and then need writing back only once."""

CACHE_KIB: Final = 16_384
"""Page cache of the writer: the edges of every index fit, and the size does not depend on the backlog."""


_CIRCUMSTANCES: Final = (
    apsw.BusyError,
    apsw.LockedError,
    apsw.IOError,
    apsw.CantOpenError,
    apsw.CorruptError,
    apsw.NoMemError,
    apsw.NotADBError,
    apsw.PermissionsError,
    apsw.ProtocolError,
    apsw.ReadOnlyError,
)
"""Errors of the disk and of other programs. All others say that a statement of ours is wrong."""


def lock(path: Path) -> IO[str]:
    """Lock the store against other processes until the returned file is closed.

    The lock is on a file beside the store, because SQLite's own locks must stay free for backups and inspection.
    Raises: ConfigError if another process has it, or if the folder cannot be written."""
    beside = path.with_name(path.name + "-lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = beside.open("a")
    except OSError as error:
        raise ConfigError(f"cannot open the store {path}: {error.strerror}: {error.filename}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise ConfigError(
            f"the store {path} is in use by another process; stop it, or give this service a store of its own"
        ) from error
    return handle


def open_writer(path: Path) -> apsw.Connection:
    """Open the connection that writes. Raises: ConfigError if the file is no database or cannot be opened."""
    try:
        connection = apsw.Connection(str(path))
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        connection.pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        connection.pragma("cache_size", -CACHE_KIB)
        connection.pragma("temp_store", "memory")
    except apsw.Error as error:
        raise ConfigError(f"cannot open the store {path}: {error}") from error
    return connection


def open_reader(path: Path) -> apsw.Connection:
    """Open a connection that only reads."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    return connection


def refusal(error: apsw.Error) -> ServiceError | None:
    """Return what a failed commit means to the caller; None if it is a bug of ours."""
    if isinstance(error, apsw.FullError):
        return StoreFull()
    if isinstance(error, _CIRCUMSTANCES):
        return StoreUnavailable(f"the store could not commit ({error}); the call can be repeated safely")
    return None


QUEUE_SHIFT: Final = 43
"""Task numbers carry their queue in the upper bits, so that the tasks of a queue lie together in order of creation and
listing or purging one reads no other: 8.8e12 creates for each of a million queues."""


def seq_range(queue_id: int) -> tuple[int, int]:
    """Return the first and the last number that a task of the queue can have."""
    first = queue_id << QUEUE_SHIFT
    return first, first + (1 << QUEUE_SHIFT) - 1
