"""The two forms of a log line."""

import json
import logging
import sys

import pytest

from adjourn_service import logs

MOMENT = 1_700_000_000.25
STAMP = "2023-11-14T22:13:20.250Z"


def record(event="task dead", level=logging.WARNING, *, exc_info=None, **facts):
    made = logging.makeLogRecord(
        {"name": "adjourn_service.x", "levelno": level, "levelname": logging.getLevelName(level), "msg": event}
    )
    made.created = MOMENT
    made.exc_info = exc_info
    vars(made).update(facts)
    return made


def raised():
    try:
        raise ValueError("oops")
    except ValueError:
        return sys.exc_info()


def test_a_text_line_has_moment_level_logger_event_and_facts():
    line = logs.TextFormatter().format(record(queue="mail", attempt=3))
    assert line == f"{STAMP} WARNING adjourn_service.x task dead queue=mail attempt=3"


def test_a_text_line_has_its_traceback_below():
    first, *rest = logs.TextFormatter().format(record(exc_info=raised())).splitlines()
    assert first == f"{STAMP} WARNING adjourn_service.x task dead"
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "ValueError: oops"


@pytest.mark.parametrize("value", ["two words", "line\nbreak", 'quo"te', ""])
def test_a_fact_in_text_cannot_pass_for_another_fact_or_line(value):
    line = logs.TextFormatter().format(record(queue=value, attempt=1))
    assert line.endswith(f"task dead queue={json.dumps(value)} attempt=1")
    assert "\n" not in line


def test_a_json_line_has_the_facts_beside_the_event():
    line = logs.JsonFormatter().format(record(queue="mail", attempt=3))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": STAMP,
        "level": "WARNING",
        "logger": "adjourn_service.x",
        "event": "task dead",
        "queue": "mail",
        "attempt": 3,
    }


def test_a_json_line_holds_its_traceback():
    line = logs.JsonFormatter().format(record(exc_info=raised()))
    assert "\n" not in line
    assert json.loads(line)["traceback"].endswith("ValueError: oops")


def test_a_fact_that_json_does_not_know_is_written_as_text(tmp_path):
    assert json.loads(logs.JsonFormatter().format(record(path=tmp_path)))["path"] == str(tmp_path)


def test_arguments_of_an_event_are_filled_in():
    made = record("%s of %s")
    made.args = (1, 2)
    assert logs.TextFormatter().format(made).endswith("1 of 2")


@pytest.fixture
def root():
    """Gives the root logger back as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    # `basicConfig(force=True)` closes the handlers that it finds; pytest's must live on.
    logger.handlers = []
    yield logger
    logger.handlers, _ = handlers, logger.setLevel(level)


@pytest.mark.parametrize(
    ("form", "formatter"), [("text", logs.TextFormatter), ("json", logs.JsonFormatter)], ids=["text", "json"]
)
def test_configure_sends_what_is_severe_enough_to_stderr_in_the_form(root, capsys, form, formatter):
    logs.configure("WARNING", form)
    (handler,) = root.handlers
    assert type(handler.formatter) is formatter
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "loud" in captured.err
    assert "quiet" not in captured.err
