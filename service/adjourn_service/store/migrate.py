"""Brings a store's schema up to date: numbered SQL files, applied once each, in order, forward only."""

from importlib.resources import files

import apsw

from adjourn_service.errors import ConfigError


def sqlite_migrations() -> list[tuple[int, str]]:
    """Return number and SQL of every migration of the sqlite store, in order."""
    folder = files("adjourn_service.store") / "migrations" / "sqlite"
    named = sorted((entry.name, entry) for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(int(name.partition("_")[0]), entry.read_text("utf-8")) for name, entry in named]


def sqlite_version(connection: apsw.Connection) -> int:
    """Return the number of the last migration that was applied; 0 for a new file."""
    return int(connection.pragma("user_version"))


def migrate_sqlite(connection: apsw.Connection) -> list[int]:
    """Apply the migrations that are missing, each in a transaction; returns their numbers.

    Raises: ConfigError if the file was written by a newer release."""
    migrations = sqlite_migrations()
    version, newest = sqlite_version(connection), migrations[-1][0]
    if version > newest:
        raise ConfigError(
            f"the store {connection.filename} has schema {version}, but this release knows schemas up to {newest};"
            " run the release that wrote it, or a newer one"
        )
    applied = []
    for number, sql in migrations:
        if number > version:
            with connection:
                connection.execute(sql)
                connection.pragma("user_version", number)
            applied.append(number)
    return applied
