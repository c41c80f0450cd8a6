"""`adjourn worker`."""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

import click

from adjourn.worker.config import WorkerConfig
from adjourn.worker.settings import ChildSettings

_LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


@click.command(context_settings={"auto_envvar_prefix": "ADJOURN_WORKER", "show_default": True})
@click.argument("modules", nargs=-1, envvar="ADJOURN_WORKER_MODULES")
@click.option(
    "-q",
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    envvar="ADJOURN_WORKER_QUEUES",
    show_envvar=True,
    help="Serve this queue; may be given again.  [default: all queues]",
)
@click.option(
    "-p",
    "--processes",
    type=click.IntRange(1, 1000),
    metavar="N",
    show_envvar=True,
    help="Child processes, each running one task at a time.  [default: the number of cores]",
)
@click.option(
    "--prefetch",
    type=click.IntRange(1, 100_000),
    default=1024,
    metavar="N",
    show_envvar=True,
    help="Most unfinished tasks to hold or ask for; long tasks are held in far smaller numbers.",
)
@click.option(
    "--grace",
    "grace_seconds",
    type=click.FloatRange(min=0),
    default=30.0,
    metavar="SECONDS",
    envvar="ADJOURN_WORKER_GRACE",
    show_envvar=True,
    help="How long running tasks may go on after SIGTERM.",
)
@click.option(
    "--target",
    default="localhost:7766",
    metavar="HOST:PORT",
    envvar="ADJOURN_TARGET",
    show_envvar=True,
    help="Where the service listens.",
)
@click.option(
    "--main",
    "main_file",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    metavar="FILE",
    envvar="ADJOURN_MAIN",
    show_envvar=True,
    help="Script whose own functions were deferred; children run it as __mp_main__.",
)
@click.option(
    "--chdir",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    show_envvar=True,
    help="Change to this directory first; modules are imported from it.  [default: where it was started]",
)
@click.option(
    "--log-level",
    type=click.Choice(_LOG_LEVELS, case_sensitive=False),
    default="INFO",
    show_envvar=True,
    help="Least level that is logged.",
)
def worker(
    modules: tuple[str, ...],
    queues: tuple[str, ...],
    processes: int | None,
    prefetch: int,
    grace_seconds: float,
    target: str,
    main_file: str | None,
    chdir: str | None,
    log_level: str,
) -> None:
    """Run tasks until SIGTERM or Ctrl-C, then finish what is running; a second signal stops at once.

    MODULES are imported by each child before its first task, from the current directory or wherever Python finds them.
    """
    # gRPC reports each broken connection in its own words, beside ours.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Not before: `adjourn --help` does without gRPC.
    from adjourn.worker.worker import Worker

    if chdir is not None:
        os.chdir(chdir)
    try:
        config = WorkerConfig(
            target=target,
            queues=queues or ("-",),
            modules=modules,
            main_file=main_file,
            processes=processes or os.cpu_count() or 1,
            prefetch=prefetch,
            grace_seconds=grace_seconds,
            log_level=log_level.upper(),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    logging.basicConfig(level=config.log_level, format=ChildSettings.log_format, stream=sys.stderr)
    Worker(config).run()
