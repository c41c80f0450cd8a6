"""What a failure means to the shell: one line on stderr and an exit status. The only place that decides it."""

from __future__ import annotations

from enum import IntEnum

import click

from adjourn import errors


class ExitStatus(IntEnum):
    """Exit statuses of `adjourn`: public interface, told in `adjourn --help` and docs/cli.md."""

    OK = 0
    FAILED = 1
    """The service refused, or the command could not do its work."""
    USAGE = 2
    """An option, a name, a value or a setting is wrong."""
    UNREACHABLE = 3
    """The service could not be reached, or did not answer in time."""
    NOT_FOUND = 4
    """There is no such queue or task."""
    CONFLICT = 5
    """It exists already, or its state does not allow what was asked."""
    INTERRUPTED = 130
    """Ctrl-C."""


EPILOG = (
    "Exit status: 0 done; 1 failed; 2 wrong option, name or setting; 3 service not reached; 4 no such queue or task; "
    "5 exists already, or its state forbids it; 130 interrupted."
)

_STATUSES: tuple[tuple[tuple[type[BaseException], ...], ExitStatus], ...] = (
    ((errors.ServiceUnavailable, errors.DeadlineExceeded), ExitStatus.UNREACHABLE),
    ((errors.QueueNotFound, errors.TaskNotFound), ExitStatus.NOT_FOUND),
    (
        (
            errors.QueueExists,
            errors.QueueNotEmpty,
            errors.QueueProtected,
            errors.TaskExists,
            errors.TaskStateError,
        ),
        ExitStatus.CONFLICT,
    ),
    ((errors.ConfigError, errors.OptionError, errors.InvalidRequest), ExitStatus.USAGE),
    ((errors.Error,), ExitStatus.FAILED),
)


def exit_status(error: errors.Error) -> ExitStatus:
    """Return the exit status for an error of the client."""
    return next(status for kinds, status in _STATUSES if isinstance(error, kinds))


def tell(message: str) -> None:
    """Write one line to stderr."""
    click.echo(f"adjourn: {' '.join(message.split())}", err=True)


def report(error: BaseException) -> int:
    """Tell the user what went wrong; return the exit status. Raises: `error` itself if it is a bug of ours."""
    match error:
        case click.Abort():
            # Click turns Ctrl-C into Abort, as it does a "no" to a question.
            if isinstance(error.__cause__, KeyboardInterrupt):
                return ExitStatus.INTERRUPTED
            tell("nothing was done")
            return ExitStatus.FAILED
        case click.exceptions.NoArgsIsHelpError():
            error.show()
            return error.exit_code
        case click.ClickException():
            hint = ""
            if isinstance(error, click.UsageError) and error.ctx is not None:
                hint = f" (see '{error.ctx.command_path} --help')"
            tell(error.format_message() + hint)
            return error.exit_code
        case UnicodeEncodeError():
            # Bytes of an argument that are no UTF-8 come as lone surrogates.
            tell(f"{error.object[:100]!a} cannot be written as {error.encoding}: {error.reason}")
            return ExitStatus.USAGE
        case errors.Error():
            tell(str(error))
            return exit_status(error)
    raise error
