"""Nothing is removed that nobody confirmed."""

import io

import click
import pytest

from adjourn.cli.prompts import confirm


class Input(io.StringIO):
    def __init__(self, text: str, *, terminal: bool) -> None:
        super().__init__(text)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def _context():
    with click.Context(click.Command("purge")):
        yield


def test_yes_asks_nothing(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Input("", terminal=True))
    confirm("Sure?", yes=True)
    assert capsys.readouterr().err == ""


def test_without_a_terminal_it_is_refused_whatever_is_piped_in(monkeypatch):
    monkeypatch.setattr("sys.stdin", Input("y\n", terminal=False))
    with pytest.raises(click.UsageError, match="give --yes"):
        confirm("Sure?", yes=False)


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_on_a_terminal_anything_but_yes_stops(monkeypatch, answer):
    monkeypatch.setattr("sys.stdin", Input(answer, terminal=True))
    with pytest.raises(click.Abort):
        confirm("Sure?", yes=False)


def test_on_a_terminal_yes_goes_on(monkeypatch):
    monkeypatch.setattr("sys.stdin", Input("y\n", terminal=True))
    confirm("Sure?", yes=False)
