"""The command's frame: which commands there are, loaded when they are needed, and what every one of them shares."""

from __future__ import annotations

import importlib
import os
from importlib.metadata import EntryPoint, entry_points, version
from typing import TYPE_CHECKING, Any, Final

import click

from adjourn.cli.failures import EPILOG, report, tell
from adjourn.cli.service import target_option

if TYPE_CHECKING:
    from collections.abc import Sequence

PLUGINS: Final = "adjourn.commands"
"""Entry points by which other packages add commands: the service adds `serve`, `up`, `migrate` and `demo`."""

_OWN: Final = {
    "queues": "adjourn.cli.queues:queues",
    "tasks": "adjourn.cli.tasks:tasks",
    "worker": "adjourn.worker.cli:worker",
}


class LazyGroup(click.Group):
    """Loads a command's module when the command is run or its help is shown."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature.
        """Return the names of all commands."""
        return sorted({*_OWN, *(plugin.name for plugin in entry_points(group=PLUGINS))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above.
        """Return a command by its name."""
        if cmd_name in _OWN:
            module, _, attribute = _OWN[cmd_name].partition(":")
            own: click.Command = getattr(importlib.import_module(module), attribute)
            return own
        for plugin in entry_points(group=PLUGINS, name=cmd_name):
            return _load(plugin)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a message that names what there is."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(
                f"there is no command {args[0]!r}; there are {', '.join(self.list_commands(ctx))}", ctx
            )
        return super().resolve_command(ctx, args)


def _load(plugin: EntryPoint) -> click.Command:
    try:
        command: click.Command = plugin.load()
    except ImportError as error:
        return _missing(plugin.name, str(error))
    return command


def _missing(name: str, reason: str) -> click.Command:
    """Return a command that says why it cannot run."""

    def refuse() -> None:
        raise click.ClickException(f"'{name}' needs the service, which is not installed ({reason}): {_INSTALL}")

    return click.Command(name, callback=refuse, short_help=f"Not installed: {_INSTALL}")


_INSTALL: Final = "pip install 'adjourn[service]'"


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@target_option
@click.version_option(version=version("adjourn"), prog_name="adjourn", message="%(prog)s %(version)s")
def adjourn() -> None:
    """Run Python calls later, on any of many workers, and never lose one.

    `adjourn up` starts a service and a worker on this machine; `adjourn demo` shows them at work.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `sys.argv`, or the arguments given. Return the exit status."""
    # The lines that gRPC's core writes to stderr tell a user nothing that ours do not.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        outcome: Any = adjourn.main(arguments, prog_name="adjourn", standalone_mode=False)
    except ModuleNotFoundError as error:
        if (error.name or "adjourn").partition(".")[0] in ("adjourn", "adjourn_service"):
            raise
        tell(f"{error.name} is not installed; the service's commands need it: {_INSTALL}")
        return 1
    except Exception as error:  # noqa: BLE001 - `report` raises again what is not for the user.
        return report(error)
    # Without standalone mode click returns the status of `ctx.exit()`; commands return none or their own.
    return outcome if isinstance(outcome, int) else 0
