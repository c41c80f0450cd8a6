"""`adjourn queues`: what an operator does with queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from adjourn.cli.output import as_dict, moment, print_fields, print_json, print_json_line, print_table, word
from adjourn.cli.policy import apply_policy, policy_fields, policy_options
from adjourn.cli.prompts import confirm, yes_option
from adjourn.cli.service import connect, service_command

if TYPE_CHECKING:
    from adjourn.v1.queue_pb2 import Queue, QueueStats


@click.group()
def queues() -> None:
    """List, make, change, pause, purge and delete queues."""


@service_command(queues, "list")
def list_queues(as_json: bool) -> None:
    """List the queues with what they hold."""
    with connect() as client:
        found = [(queue, client.queue_stats(queue.name)) for queue in client.list_queues()]
    if as_json:
        for queue, stats in found:
            print_json_line(_as_dict(queue, stats))
        return
    print_table(
        ("QUEUE", "STATE", "SCHEDULED", "READY", "LEASED", "DEAD", "SUCCEEDED"),
        (
            (
                _id(queue),
                _state(queue),
                str(stats.scheduled_count),
                str(stats.ready_count),
                str(stats.leased_count),
                str(stats.dead_count),
                str(stats.succeeded_total),
            )
            for queue, stats in found
        ),
    )


@service_command(queues, "show")
@click.argument("queue")
def show(queue: str, as_json: bool) -> None:
    """Show a queue's policy and counters."""
    with connect() as client:
        found, stats = client.get_queue(queue), client.queue_stats(queue)
    if as_json:
        print_json(_as_dict(found, stats))
        return
    print_fields(
        (
            ("queue", _id(found)),
            ("state", _state(found)),
            ("created", moment(found.create_time)),
            ("changed", moment(found.update_time)),
        )
    )
    click.echo("\nPolicy")
    print_fields(policy_fields(found))
    click.echo("\nTasks")
    print_fields(
        (
            ("scheduled", str(stats.scheduled_count)),
            ("ready", str(stats.ready_count)),
            ("leased", str(stats.leased_count)),
            ("dead", str(stats.dead_count)),
            ("retained", str(stats.retained_count)),
            ("created ever", str(stats.created_total)),
            ("succeeded ever", str(stats.succeeded_total)),
            ("died ever", str(stats.dead_total)),
            ("failed attempts", str(stats.failed_attempts_total)),
            ("next is ready since", moment(stats.next_ready_time)),
        )
    )


@service_command(queues, "create")
@click.argument("queue")
@policy_options
def create(queue: str, as_json: bool, **policy: object) -> None:
    """Make a queue. What is not given takes its default."""
    from adjourn.v1.queue_pb2 import Queue

    wanted = Queue(name=queue)
    apply_policy(wanted, policy)
    with connect() as client:
        _say("created", client.create_queue(wanted), as_json)


@service_command(queues, "update")
@click.argument("queue")
@policy_options
def update(queue: str, as_json: bool, **policy: object) -> None:
    """Change a queue's policy. What is not given stays as it is; the word `default` resets a field."""
    from adjourn.v1.queue_pb2 import Queue

    wanted = Queue(name=queue)
    paths = apply_policy(wanted, policy)
    if not paths:
        raise click.UsageError("give at least one option of what to change", click.get_current_context())
    with connect() as client:
        _say("updated", client.update_queue(wanted, paths), as_json)


@service_command(queues, "pause")
@click.argument("queue")
def pause(queue: str, as_json: bool) -> None:
    """Stop handing out a queue's tasks. They are still accepted, and those that run go on."""
    with connect() as client:
        _say("paused", client.pause_queue(queue), as_json)


@service_command(queues, "resume")
@click.argument("queue")
def resume(queue: str, as_json: bool) -> None:
    """Hand out a paused queue's tasks again."""
    with connect() as client:
        _say("resumed", client.resume_queue(queue), as_json)


@service_command(queues, "purge")
@click.argument("queue")
@yes_option
def purge(queue: str, as_json: bool, yes: bool) -> None:
    """Remove every task of a queue, running ones and dead letters included."""
    with connect() as client:
        client.get_queue(queue)
        confirm(f"Remove every task of {queue}?", yes)
        count = client.purge_queue(queue)
    if as_json:
        print_json({"purged_count": count})
    else:
        click.echo(f"purged {queue} of {count} tasks")


@service_command(queues, "delete")
@click.argument("queue")
@click.option("--force", is_flag=True, help="Delete the queue's tasks, too.")
@yes_option
def delete(queue: str, as_json: bool, force: bool, yes: bool) -> None:
    """Delete a queue that holds no tasks."""
    with connect() as client:
        found = client.get_queue(queue)
        confirm(f"Delete the queue {queue}{' and all its tasks' if force else ''}?", yes)
        client.delete_queue(queue, force)
    if as_json:
        print_json({"name": found.name})
    else:
        click.echo(f"deleted {_id(found)}")


def _id(queue: Queue) -> str:
    return queue.name.removeprefix("queues/")


def _state(queue: Queue) -> str:
    from adjourn.v1.queue_pb2 import QueueState

    return word(QueueState.Name(queue.state), "QUEUE_STATE_")


def _as_dict(queue: Queue, stats: QueueStats) -> dict[str, object]:
    return {**as_dict(queue), "stats": as_dict(stats, with_zeros=True)}


def _say(done: str, queue: Queue, as_json: bool) -> None:
    if as_json:
        print_json(as_dict(queue))
    else:
        click.echo(f"{done} {_id(queue)}")
