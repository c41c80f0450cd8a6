"""The service as commands see it: where it is, and a client for the length of one command."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from adjourn.client import Client

F = TypeVar("F", bound="Callable[..., Any]")

TIMEOUT_SECONDS: Final = 5.0
"""A person waits in front of the command: half of what a program's calls may take."""


def _point_to(_ctx: click.Context, _parameter: click.Parameter, target: str | None) -> None:
    if target is None:
        return
    if not target.strip():
        # An unset variable of a script: going to the default service instead could purge the wrong queue.
        raise click.BadParameter("it is empty; write HOST:PORT, or leave the option out")
    # The environment is what a client, a worker and its children read.
    os.environ["ADJOURN_TARGET"] = target


target_option = click.option(
    "--target",
    metavar="HOST:PORT",
    expose_value=False,
    callback=_point_to,
    help="Where the service listens.  [env: ADJOURN_TARGET; default: localhost:7766]",
)


def service_command(group: click.Group, name: str) -> Callable[[F], click.Command]:
    """Make a function a command of `group` with the options that all commands on queues and tasks have.

    The function gets `as_json` beside its own parameters."""

    def decorate(function: F) -> click.Command:
        as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, with the names of the wire API.")
        return group.command(name)(target_option(as_json(function)))

    return decorate


def connect() -> Client:
    """Return a client of the service that the environment names. Raises: ConfigError."""
    os.environ.setdefault("ADJOURN_TIMEOUT", str(TIMEOUT_SECONDS))

    # Not before: `adjourn --help` does without gRPC.
    from adjourn.client import Client
    from adjourn.config import ClientConfig

    return Client(config=ClientConfig.from_environment())
