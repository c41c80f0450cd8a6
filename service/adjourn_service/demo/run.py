"""The course of the demo: start, defer, kill, wait, count, tell."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import click
from rich import progress
from rich.console import Console

import adjourn
from adjourn.aio import AsyncClient
from adjourn.v1.queue_pb2 import QueueStats
from adjourn_service.demo.tally import Tally, count
from adjourn_service.demo.tasks import REPORTS, RUNS, survey
from adjourn_service.up import LocalStack, StartFailed

QUEUE: Final = "default"
RETAIN_SECONDS: Final = 3600
"""The tasks are kept so that their attempts can be read at the end."""

POLL_SECONDS: Final = 0.1
STALLED_SECONDS: Final = 90.0
"""Three leases: what a dead worker held has long been run again by then."""


@dataclass(frozen=True)
class DemoSettings:
    """What the demo can be told."""

    processes: int
    """Processes that run tasks."""
    limit: int | None
    """Most files to take; None: all."""
    kill: bool
    """Whether to kill one of the processes half-way."""


class Display(Protocol):
    """What a person sees of the demo while it goes on."""

    def ended(self, tasks: int) -> None:
        """So many tasks have ended."""

    def note(self, text: str) -> None:
        """Something worth a line has happened."""


class Lines:
    """Notes only, a line each on stderr: where there is no terminal."""

    def ended(self, tasks: int) -> None:
        """See Display."""

    def note(self, text: str) -> None:
        """See Display."""
        click.echo(text, err=True)


class LiveBar:
    """Notes above a bar that moves."""

    def __init__(self, bar: progress.Progress, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("parsing", total=total)

    def ended(self, tasks: int) -> None:
        """See Display."""
        self._bar.update(self._task, completed=tasks)

    def note(self, text: str) -> None:
        """See Display."""
        self._bar.console.print(text, highlight=False)


def run_demo(settings: DemoSettings, keep: Path | None, *, as_json: bool) -> int:
    """Run the demo in `keep`, or in a temporary folder. Return the exit status: 1 if anything was lost."""
    with _folder(keep) as folder:
        try:
            tally = asyncio.run(_run(settings, folder))
        except StartFailed as failure:
            click.echo((folder / "log").read_text("utf-8"), err=True)
            raise click.ClickException(str(failure)) from failure
    if as_json:
        click.echo(json.dumps(tally.figures()))
    else:
        click.echo("\n".join(["", *tally.lines()]))
        if keep is not None:
            click.echo(f"\nReports, runs, tasks and the log are in {keep}.")
    return 1 if tally.lost else 0


def find_sources(limit: int | None = None) -> dict[str, Path]:
    """Return every Python source file of the running interpreter's standard library by its name there."""
    root = Path(sysconfig.get_path("stdlib"))
    found = sorted(
        path
        for path in root.rglob("*.py")
        if not {"site-packages", "dist-packages", "__pycache__"} & set(path.relative_to(root).parts)
    )
    return {str(path.relative_to(root)): path for path in found[:limit]}


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="adjourn-demo-") as name:
            yield _prepare(Path(name))
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        empty = not any(keep.iterdir())
    except OSError as error:
        raise click.BadParameter(f"cannot use {keep}: {error.strerror}", param_hint="--keep") from error
    if not empty:
        raise click.BadParameter(f"{keep} is not empty", param_hint="--keep")
    yield _prepare(keep)


def _prepare(folder: Path) -> Path:
    for name in (RUNS, REPORTS):
        (folder / name).mkdir()
    return folder.absolute()


async def _run(settings: DemoSettings, folder: Path) -> Tally:
    sources = find_sources(settings.limit)
    with (folder / "log").open("w", encoding="utf-8") as log:
        stack = LocalStack(folder, lambda name, line: print(f"{name:<7} | {line}", file=log, flush=True))
        try:
            target = await stack.start_service()
            await stack.start_worker(["--processes", str(settings.processes)])
            adjourn.configure(target=target)
            began = time.monotonic()
            # In a thread, as a program without asyncio does it, while the first tasks already run.
            deferring = asyncio.create_task(asyncio.to_thread(_defer_all, sources, folder))
            async with AsyncClient(target) as client:
                with _display(len(sources)) as display:
                    display.note(f"{len(sources):,} files, {settings.processes} processes, service at {target}")
                    await _until_ended(client, len(sources), stack, folder if settings.kill else None, display)
                seconds = time.monotonic() - began
                names = await deferring
                tasks = [task async for task in client.list_tasks(QUEUE)]
        finally:
            await stack.stop()
    return count(names, folder, tasks, seconds)


def _defer_all(sources: dict[str, Path], folder: Path) -> dict[str, str]:
    """Defer a task for each source; return the names of the sources by the uids of the tasks."""
    names = {}
    with adjourn.batch():
        for name, path in sources.items():
            handle = adjourn.defer(survey, str(path), str(folder), _queue=QUEUE, _retain=RETAIN_SECONDS)
            names[handle.id] = name
    return names


async def _until_ended(
    client: AsyncClient, total: int, stack: LocalStack, victims: Path | None, display: Display
) -> None:
    """Wait until every task has ended, or nothing has for long. Half-way kill a process seen in `victims`."""
    ended, changed_at = 0, time.monotonic()
    while ended < total and stack.service.alive and stack.worker.alive:
        before, ended = ended, _ended(await client.queue_stats(QUEUE))
        display.ended(ended)
        if victims is not None and ended >= total // 2:
            pid = await asyncio.to_thread(_kill_one, victims)
            if pid is not None:
                display.note(f"killed process {pid} in the middle of a task, after {ended:,} of {total:,}")
                victims = None
                continue
        if ended != before:
            changed_at = time.monotonic()
        elif time.monotonic() - changed_at > STALLED_SECONDS:
            display.note(f"no task has ended for {STALLED_SECONDS:g} seconds; giving up")
            return
        await asyncio.sleep(POLL_SECONDS)


def _ended(stats: QueueStats) -> int:
    return int(stats.retained_count + stats.dead_count)


def _kill_one(folder: Path) -> int | None:
    """Kill a process in the middle of a task, as its record tells; return its pid, None if none was found there."""
    reported = {path.stem for path in (folder / REPORTS).glob("*.json")}
    for run in (folder / RUNS).iterdir():
        uid, _, pid = run.name.split(".")
        if uid not in reported and _kill_unless(folder / REPORTS / f"{uid}.json", int(pid)):
            return int(pid)
    return None


def _kill_unless(report: Path, pid: int) -> bool:
    """Kill a process unless it has written the report by now; return whether it was killed."""
    try:
        # Held still, so that it cannot end the task between the look and the kill.
        os.kill(pid, signal.SIGSTOP)
        if not report.exists():
            os.kill(pid, signal.SIGKILL)
            return True
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass
    return False


@contextlib.contextmanager
def _display(total: int) -> Iterator[Display]:
    """Show a live bar on a terminal, and lines elsewhere."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        yield LiveBar(bar, total)
