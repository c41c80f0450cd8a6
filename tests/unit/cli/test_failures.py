"""Every failure has a line and a status; a bug of ours keeps its traceback."""

import click
import pytest

from adjourn import errors
from adjourn.cli.failures import EPILOG, ExitStatus, exit_status, report


def all_kinds(root: type[errors.Error]) -> list[type[errors.Error]]:
    return [root, *(kind for each in root.__subclasses__() for kind in all_kinds(each))]


@pytest.mark.parametrize("kind", all_kinds(errors.Error))
def test_every_error_of_the_client_has_a_status(kind):
    assert exit_status(kind.__new__(kind)) in set(ExitStatus) - {ExitStatus.OK, ExitStatus.INTERRUPTED}


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.InternalError, 1),
        (errors.PermissionDenied, 1),
        (errors.InvalidRequest, 2),
        (errors.ConfigError, 2),
        (errors.OptionError, 2),
        (errors.ServiceUnavailable, 3),
        (errors.DeadlineExceeded, 3),
        (errors.QueueNotFound, 4),
        (errors.TaskNotFound, 4),
        (errors.QueueExists, 5),
        (errors.TaskStateError, 5),
    ],
)
def test_the_statuses_that_scripts_rely_on(kind, status):
    assert exit_status(kind.__new__(kind)) == status


def test_help_tells_every_status():
    told = [int(part.split()[0]) for part in EPILOG.removeprefix("Exit status: ").split("; ")]
    assert told == sorted(ExitStatus)


def test_a_message_of_many_lines_is_told_in_one(capsys):
    assert report(click.ClickException("a\n  b\nc")) == 1
    assert capsys.readouterr().err == "adjourn: a b c\n"


def test_ctrl_c_says_nothing_and_a_no_says_that_nothing_was_done(capsys):
    interrupted = click.Abort()
    interrupted.__cause__ = KeyboardInterrupt()
    assert report(interrupted) == 130
    assert capsys.readouterr().err == ""
    assert report(click.Abort()) == 1
    assert capsys.readouterr().err == "adjourn: nothing was done\n"


def test_an_argument_that_is_no_utf_8_is_wrong_usage(capsys):
    with pytest.raises(UnicodeEncodeError) as caught:
        "\udcff".encode()
    assert report(caught.value) == 2
    assert capsys.readouterr().err == "adjourn: '\\udcff' cannot be written as utf-8: surrogates not allowed\n"


def test_a_bug_of_ours_is_raised_again():
    with pytest.raises(ZeroDivisionError):
        report(ZeroDivisionError())
