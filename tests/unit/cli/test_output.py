"""What is printed for people: tables, moments and words."""

import io

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from adjourn.cli.output import as_dict, duration, moment, print_fields, print_table, word
from adjourn.v1.queue_pb2 import QueueStats


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_moment_is_utc_to_the_millisecond():
    assert moment(Timestamp(seconds=1_795_420_800, nanos=125_999_999)) == "2026-11-23 08:00:00.125Z"
    assert moment(Timestamp()) == ""


@pytest.mark.parametrize(
    ("seconds", "nanos", "text"),
    [
        (0, 0, "0s"),
        (30, 0, "30s"),
        (90, 0, "1m30s"),
        (86_400, 0, "1d"),
        (0, 100_000_000, "0.1s"),
        (3600, 5, "1h5e-09s"),
    ],
)
def test_a_duration_is_in_units_that_leave_no_rest(seconds, nanos, text):
    assert duration(Duration(seconds=seconds, nanos=nanos)) == text


def test_the_value_of_an_enum_is_a_word():
    assert word("TASK_STATE_DEAD", "TASK_STATE_") == "dead"


def test_counters_that_are_0_are_told_if_asked_for():
    assert as_dict(QueueStats()) == {}
    assert as_dict(QueueStats(), with_zeros=True)["ready_count"] == "0"


def test_columns_are_aligned_and_none_is_empty(capsys):
    print_table(("A", "BB"), [("long", ""), ("", "x")])
    assert capsys.readouterr().out == "A     BB\nlong  -\n-     x\n"


def test_a_table_without_rows_has_its_heading(capsys):
    print_table(("A", "BB"), [])
    assert capsys.readouterr().out == "A  BB\n"


def test_on_a_terminal_a_table_is_drawn_and_names_are_no_markup(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    print_table(("A", "B"), [("[red]x[/red]", "y")])
    assert "[red]x[/red]" in terminal.getvalue()
    assert "─" in terminal.getvalue()


def test_fields_that_are_not_set_are_left_out(capsys):
    print_fields([("name", "a"), ("worker", ""), ("eta", "b")])
    assert capsys.readouterr().out == "name  a\neta   b\n"
