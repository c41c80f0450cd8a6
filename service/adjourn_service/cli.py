"""`adjourn serve`, `up`, `migrate` and `demo`: options in, one call, exit status out. No logic.

Imports of the service's dependencies stand in the functions: `adjourn --help` is quick and works without them."""

import asyncio
import importlib.util
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click

from adjourn_service.config import ServiceConfig, env_name
from adjourn_service.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

_METAVARS: Final[dict[Any, str]] = {str: "TEXT", int: "N", float: "NUMBER"}


class _BadSettings(click.ClickException):
    """Settings that cannot work: the status of wrong usage."""

    exit_code = 2


def _settings(function: F) -> F:
    """Add `--config` and an option for every setting; the function gets them by name, None if not given."""
    for each in reversed(fields(ServiceConfig)):
        # ServiceConfig reads and checks the text, as it does for variables, so that all faults are told at once.
        option = click.option(
            f"--{each.name.replace('_', '-')}",
            metavar="|".join(get_args(each.type)) or _METAVARS[each.type],
            help=f"{each.metadata['help']}  [env: {env_name(each.name)}; default: {each.default}]",
        )
        function = option(function)
    return click.option(
        "--config",
        "config_file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        envvar="ADJOURN_CONFIG",
        help="TOML file with these settings, as in `drain_grace = 10`.  [env: ADJOURN_CONFIG]",
    )(function)


def _load(config_file: Path | None, flags: dict[str, Any]) -> ServiceConfig:
    try:
        return ServiceConfig.load(flags, os.environ, config_file)
    except ConfigError as error:
        raise _BadSettings(str(error)) from error


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to its end, on uvloop where there is one."""
    # uvloop has no release for Windows.
    uvloop = importlib.import_module("uvloop") if importlib.util.find_spec("uvloop") else None
    factory = uvloop.new_event_loop if uvloop is not None else None
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(work)
    except ConfigError as error:
        raise _BadSettings(str(error)) from error


@click.command()
@_settings
def serve(config_file: Path | None, **flags: Any) -> None:
    """Run the queue service until SIGTERM or Ctrl-C.

    A setting is taken from its option, else from its variable, else from the TOML file.
    """
    config = _load(config_file, flags)
    from adjourn_service import logs
    from adjourn_service.server import serve as run_service

    logs.configure(config.log_level, config.log_format)
    _run(run_service(config))


@click.command()
@click.option(
    "--check", is_flag=True, help="Change nothing; exit with 1 if the schema is behind. Works beside a running service."
)
@_settings
def migrate(check: bool, config_file: Path | None, **flags: Any) -> int:
    """Bring a store's schema up to date. `adjourn serve` does it too, at its start."""
    config = _load(config_file, flags)
    path = config.sqlite_path()
    if path is None:
        click.echo(f"{config.store} has no schema to migrate")
        return 0
    return _check_schema(path) if check else _migrate(path)


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    """Turn whatever a store's file raises into a line and status 2: 1 is for a schema that is behind."""
    try:
        yield
    except ConfigError as error:
        raise _BadSettings(str(error)) from error
    except Exception as error:  # Which errors a database raises is for the store alone to know.
        raise _BadSettings(f"cannot use the store {path}: {error}") from error


def _migrate(path: Path) -> int:
    from adjourn_service.store.migrate import migrate_sqlite, sqlite_version
    from adjourn_service.store.sqlite_file import lock, open_writer

    # Each migration is a transaction: one that fails leaves nothing behind.
    with _store_errors(path), lock(path), closing(open_writer(path)) as connection:
        before, applied = sqlite_version(connection), migrate_sqlite(connection)
    if applied:
        click.echo(f"{path}: schema {before} brought to {applied[-1]}")
    else:
        click.echo(f"{path}: schema {before} is current")
    return 0


def _check_schema(path: Path) -> int:
    from adjourn_service.store.migrate import sqlite_migrations, sqlite_version
    from adjourn_service.store.sqlite_file import open_reader

    newest, _ = sqlite_migrations()[-1]
    if not path.exists():
        click.echo(f"{path}: there is no store yet; this release makes it with schema {newest}")
        return 1
    with _store_errors(path), closing(open_reader(path)) as connection:
        version = sqlite_version(connection)
    if version > newest:
        raise _BadSettings(f"the store {path} has schema {version}, but this release knows schemas up to {newest}")
    if version < newest:
        click.echo(f"{path}: schema {version} is behind {newest}; run `adjourn migrate`, or start the service")
        return 1
    click.echo(f"{path}: schema {version} is current")
    return 0


def _loopback_port(_ctx: click.Context, _parameter: click.Parameter, text: str) -> int:
    """Return the port in `PORT` or `HOST:PORT`. Raises: click.BadParameter if the host is another than this one."""
    host, _, port = text.rpartition(":")
    if host not in ("", "127.0.0.1", "localhost"):
        raise click.BadParameter(
            f"{text!r}: 'up' is for this machine only, 127.0.0.1; 'adjourn serve --listen' serves others"
        )
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65_535):
        raise click.BadParameter(f"{text!r} is neither a port nor 127.0.0.1:PORT, such as 7766")
    return int(port)


@click.command()
@click.argument("modules", nargs=-1)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".adjourn"),
    show_default=True,
    metavar="DIR",
    help="Where the tasks are kept; made if it is not there.",
)
@click.option(
    "--listen",
    "--port",
    "port",
    metavar="PORT",
    default="7766",
    show_default=True,
    callback=_loopback_port,
    help="Port on this machine's loopback address, or 127.0.0.1:PORT; 0 takes a free one.",
)
@click.option(
    "-p", "--processes", type=click.IntRange(1, 1000), metavar="N", help="Processes that run tasks.  [default: cores]"
)
@click.option(
    "--main",
    "main_file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Script whose own functions are deferred, as in `adjourn worker --main`.",
)
def up(modules: tuple[str, ...], data_dir: Path, port: int, processes: int | None, main_file: str | None) -> int:
    """Run the service on an embedded store and a worker for it, on this machine only, until Ctrl-C.

    MODULES are imported by the worker before its first task. Tasks and their state stay in the data directory.
    """
    from adjourn_service.up import run_until_stopped

    worker_options = [*modules]
    if processes is not None:
        worker_options += ["--processes", str(processes)]
    if main_file is not None:
        worker_options += ["--main", main_file]
    return asyncio.run(run_until_stopped(data_dir, port, worker_options))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON instead of the summary.")
@click.option(
    "-p", "--processes", type=click.IntRange(1, 100), metavar="N", help="Processes that run tasks.  [default: cores]"
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take only the first N files.  [default: all]")
@click.option("--no-kill", is_flag=True, help="Do not kill a process half-way.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep reports and tasks in this directory, which must be new or empty.  [default: a temporary one]",
)
def demo(as_json: bool, processes: int | None, limit: int | None, no_kill: bool, keep: Path | None) -> int:
    """Parse every source file of Python's standard library, one task each, and count what became of them.

    Half-way one of the processes that run tasks is killed. The exit status is 1 if anything was lost.
    """
    from adjourn_service.demo import DemoSettings, run_demo

    settings = DemoSettings(processes or os.cpu_count() or 1, limit, kill=not no_kill)
    return run_demo(settings, keep, as_json=as_json)
