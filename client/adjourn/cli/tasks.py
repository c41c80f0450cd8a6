"""`adjourn tasks`: what an operator does with single tasks."""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING, Any, Final

import click

from adjourn import errors
from adjourn.cli.failures import exit_status, tell
from adjourn.cli.output import (
    as_dict,
    duration,
    moment,
    print_fields,
    print_json,
    print_json_line,
    print_table,
    word,
)
from adjourn.cli.prompts import confirm, yes_option
from adjourn.cli.service import connect, service_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from adjourn.client import Client
    from adjourn.v1.task_pb2 import Attempt, Task

_STATES: Final = ("scheduled", "ready", "leased", "succeeded", "dead", "cancelled")
_OUTCOMES: Final = {
    "retry": "failed",
    "failed": "failed for good",
    "crashed": "its process died",
    "expired": "its lease expired",
}


@click.group()
def tasks() -> None:
    """List, show, cancel, run, retry and delete tasks.

    A task is named QUEUE/TASK, or as lists and JSON have it: queues/QUEUE/tasks/TASK.
    """


@service_command(tasks, "list")
@click.option("--queue", default="-", metavar="QUEUE", help="Only of this queue.  [default: all]")
@click.option("--state", type=click.Choice(_STATES, case_sensitive=False), help="Only in this state.")
@click.option("--tag", help="Only with this tag.")
@click.option("--key", help="Only with this key.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Most tasks to list.")
def list_tasks(queue: str, state: str | None, tag: str | None, key: str | None, limit: int, as_json: bool) -> None:
    """List tasks, queue by queue, each in the order of creation."""
    with connect() as client:
        found = client.list_tasks(queue, state=state, tag=tag, key=key, limit=limit)
        if as_json:
            for task in found:
                print_json_line(as_dict(task))
            return
        print_table(
            ("TASK", "STATE", "CALLABLE", "ATTEMPTS", "CREATED", "ETA", "LAST ERROR"),
            (
                (
                    _short_name(task),
                    _state(task),
                    task.callable,
                    str(task.status.attempt_count),
                    moment(task.status.create_time),
                    _eta(task),
                    _last_error(task),
                )
                for task in found
            ),
        )


@service_command(tasks, "show")
@click.argument("task")
def show(task: str, as_json: bool) -> None:
    """Show a task and the attempts that did not succeed, with their tracebacks."""
    with connect() as client:
        found = client.get_task(task)
    if as_json:
        print_json(as_dict(found))
        return
    status = found.status
    print_fields(
        (
            ("task", found.name),
            ("uid", found.uid),
            ("callable", found.callable),
            ("state", _state(found)),
            ("attempts", str(status.attempt_count)),
            ("priority", str(found.priority) if found.priority else ""),
            ("tag", found.tag),
            ("key", found.key),
            ("headers", ", ".join(f"{name}={value}" for name, value in sorted(found.headers.items()))),
            ("deadline", duration(found.deadline) if found.HasField("deadline") else ""),
            ("payload", f"{len(found.payload):,} bytes"),
            ("result", f"{len(status.result):,} bytes" if status.result else ""),
            ("created", moment(status.create_time)),
            ("eta", _eta(found)),
            ("first attempt", moment(status.first_attempt_time)),
            ("worker", status.worker_id),
            ("lease ends", moment(status.lease_expire_time)),
            ("ended", moment(status.end_time)),
            ("kept until", moment(status.expire_time)),
        )
    )
    for attempt in status.attempts:
        click.echo()
        _print_attempt(attempt)


@service_command(tasks, "cancel")
@click.argument("names", metavar="TASK...", nargs=-1, required=True)
def cancel(names: tuple[str, ...], as_json: bool) -> None:
    """Cancel tasks: what waits never runs, what runs is stopped."""
    _each(names, lambda client, name: client.cancel_task(name), "cancelled", as_json)


@service_command(tasks, "run")
@click.argument("names", metavar="TASK...", nargs=-1, required=True)
def run(names: tuple[str, ...], as_json: bool) -> None:
    """Make scheduled tasks ready now."""
    _each(names, lambda client, name: client.run_task(name), "made ready", as_json)


@service_command(tasks, "retry")
@click.argument("names", metavar="TASK...", nargs=-1, required=True)
def retry(names: tuple[str, ...], as_json: bool) -> None:
    """Give dead letters and cancelled tasks another life, with no attempts counted."""
    _each(names, lambda client, name: client.retry_task(name), "made ready", as_json)


@service_command(tasks, "delete")
@click.argument("names", metavar="TASK...", nargs=-1, required=True)
@yes_option
def delete(names: tuple[str, ...], as_json: bool, yes: bool) -> None:
    """Remove tasks in any state."""
    confirm(f"Delete {names[0] if len(names) == 1 else f'{len(names)} tasks'}?", yes)

    def remove(client: Client, name: str) -> None:
        client.delete_task(name)

    _each(names, remove, "deleted", as_json)


def _each(names: tuple[str, ...], act: Callable[[Client, str], Task | None], done: str, as_json: bool) -> None:
    """Do it to each task, telling of every one; one that fails does not stop the others.

    Raises: Exit with the status of the last failure."""
    status = 0
    with connect() as client:
        for name in names:
            try:
                task = act(client, name)
            except errors.ServiceUnavailable:
                raise
            except errors.Error as error:
                tell(str(error))
                status = exit_status(error)
                continue
            if as_json:
                shown: dict[str, Any] = as_dict(task) if task is not None else {"name": name}
                print_json_line(shown)
            else:
                click.echo(f"{done} {name}")
    click.get_current_context().exit(status)


def _print_attempt(attempt: Attempt) -> None:
    from adjourn.v1.task_pb2 import AttemptOutcome

    outcome = word(AttemptOutcome.Name(attempt.outcome), "ATTEMPT_OUTCOME_")
    click.echo(f"Attempt {attempt.number}: {_OUTCOMES.get(outcome, outcome)}")
    print_fields(
        (
            ("  began", moment(attempt.lease_time)),
            ("  ended", moment(attempt.end_time)),
            ("  worker", attempt.worker_id),
            ("  error", attempt.error.type),
            ("  message", attempt.error.message),
        )
    )
    if attempt.error.traceback:
        click.echo(indent(attempt.error.traceback.rstrip(), "    "))


def _short_name(task: Task) -> str:
    _, queue, _, name = task.name.split("/")
    return f"{queue}/{name}"


def _state(task: Task) -> str:
    from adjourn.v1.task_pb2 import TaskState

    return word(TaskState.Name(task.status.state), "TASK_STATE_")


def _eta(task: Task) -> str:
    """Return when a task becomes, or became, ready; empty once it has ended."""
    return "" if task.status.HasField("end_time") else moment(task.status.eta)


def _last_error(task: Task) -> str:
    return task.status.attempts[-1].error.type if task.status.attempts else ""
