"""Durations and the fields of a queue's policy, as text and as messages."""

import doctest

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from adjourn.cli import policy
from adjourn.cli.output import duration
from adjourn.cli.policy import apply_policy, parse_duration, policy_fields, policy_options
from adjourn.v1.queue_pb2 import Queue, StopRule


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(policy).failed == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86_400), ("500ms", 0.5), ("1.5h", 5400), ("1h30m", 5400), ("0", 0)],
)
def test_a_duration_is_read_in_each_unit_and_as_a_sum(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5 s", "1h 30m", "1e3s", ".5s", "5S", "5sec", "nan", "5s\n"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="is not a duration; write"):
        parse_duration(text)


@pytest.mark.parametrize("digits", [13, 25, 400])
def test_a_duration_that_no_message_holds_is_refused_in_a_short_line(digits):
    with pytest.raises(ValueError, match="longer than any") as caught:
        parse_duration("9" * digits + "d")
    assert len(str(caught.value)) < 100


@given(st.integers(0, 365 * 86_400))
def test_a_duration_is_printed_as_it_may_be_given(seconds):
    queue = Queue()
    queue.lease_duration.seconds = seconds
    assert parse_duration(duration(queue.lease_duration)) == seconds


def applied(*arguments: str) -> tuple[Queue, list[str]]:
    """Return what options make of a queue, and the paths that they name."""
    found = []

    @click.command()
    @policy_options
    def command(**values: object) -> None:
        queue = Queue()
        found.append((queue, apply_policy(queue, values)))

    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return found[0]


def test_there_is_an_option_for_every_field_that_can_be_set():
    def paths(descriptor, prefix=""):
        for field in descriptor.fields:
            nested = field.message_type
            if nested is not None and nested.full_name.startswith("adjourn."):
                yield from paths(nested, f"{field.name}.")
            else:
                yield prefix + field.name

    output_only = {"name", "state", "create_time", "update_time"}
    assert {field.path for field in policy._FIELDS} == set(paths(Queue.DESCRIPTOR)) - output_only


def test_options_set_their_fields_and_name_them():
    queue, paths = applied("--max-attempts", "5", "--min-backoff", "1.5s", "--stop", "ALL", "--rate", "0.5")
    assert paths == [
        "retry_policy.max_attempts",
        "retry_policy.min_backoff",
        "retry_policy.stop",
        "rate_limits.max_leases_per_second",
    ]
    assert queue.retry_policy.max_attempts == 5
    assert queue.retry_policy.min_backoff.ToMilliseconds() == 1500
    assert queue.retry_policy.stop == StopRule.STOP_RULE_ALL
    assert queue.rate_limits.max_leases_per_second == 0.5
    assert dict(policy_fields(queue))["min-backoff"] == "1.5s"


def test_default_names_a_field_and_leaves_it_unset():
    assert applied("--max-age", "default", "--burst", "default") == (
        Queue(),
        ["retry_policy.max_age", "rate_limits.max_burst_size"],
    )


def test_nothing_given_changes_nothing():
    assert applied() == (Queue(), [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-attempts", "2.5"], "not a whole number"),
        (["--max-attempts", "9" * 20], "far out of its bounds"),
        (["--jitter", "much"], "not a number"),
        (["--stop", "never"], "neither 'any' nor 'all'"),
        (["--lease-duration", "30"], "not a duration"),
    ],
)
def test_a_wrong_value_is_wrong_usage(arguments, said):
    with pytest.raises(click.BadParameter, match=said):
        applied(*arguments)
