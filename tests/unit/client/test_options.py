"""Options are checked at the call: bounds, grammar, contradictions; App Engine's forms are understood."""

from __future__ import annotations

import datetime as dt
import time
from types import SimpleNamespace

import pytest

import adjourn
from adjourn import calls
from adjourn.deferred import TaskRetryOptions
from adjourn.options import NO_OPTIONS, Retry, TaskOptions, split_seed_options
from adjourn.payload import EncodedCall
from adjourn.v1 import queue_pb2

UTC = dt.UTC


def wire(options: TaskOptions):
    return calls.create_request("queues/default", options, EncodedCall("m.f", b"payload"))


@pytest.mark.parametrize(
    ("countdown", "seconds", "nanos"),
    [(60, 60, 0), ("7", 7, 0), (0.25, 0, 250_000_000), (-5, 0, 0), (dt.timedelta(minutes=2), 120, 0), (0, 0, 0)],
)
def test_countdown_is_sent_as_a_duration_for_the_services_clock(countdown, seconds, nanos):
    task = wire(TaskOptions(countdown=countdown)).task
    assert (task.countdown.seconds, task.countdown.nanos) == (seconds, nanos)
    assert not task.HasField("eta")


@pytest.mark.parametrize(
    "eta",
    [
        dt.datetime(2027, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        dt.datetime(2027, 1, 2, 5, 4, 5, 678901, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        dt.datetime(2027, 1, 2, 3, 4, 5, 678901, tzinfo=UTC).astimezone().replace(tzinfo=None),
    ],
)
def test_eta_is_sent_to_the_microsecond_and_without_zone_is_local_time(eta):
    timestamp = wire(TaskOptions(eta=eta)).task.eta
    assert (timestamp.seconds, timestamp.nanos) == (1798859045, 678_901_000)


def test_eta_without_zone_follows_the_local_zone(monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        eta = TaskOptions(eta=dt.datetime(2027, 1, 1)).eta  # noqa: DTZ001
        assert eta == dt.datetime(2027, 1, 1, 5, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_eta_in_the_past_is_sent_exactly():
    timestamp = wire(TaskOptions(eta=dt.datetime(1969, 12, 31, 23, 59, 59, 500_000, tzinfo=UTC))).task.eta
    assert (timestamp.seconds, timestamp.nanos) == (-1, 500_000_000)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"countdown": 1, "eta": dt.datetime(2027, 1, 1, tzinfo=UTC)}, "exclude each other"),
        ({"eta": dt.date(2027, 1, 1)}, "must be a datetime.datetime, not date"),
        ({"eta": "tomorrow"}, "must be a datetime.datetime, not str"),
        ({"countdown": "soon"}, "must be a number"),
        ({"countdown": object()}, "must be a number"),
        ({"countdown": 10**1000}, "must be a number"),
        ({"countdown": float("nan")}, "finite"),
        ({"countdown": float("inf")}, "finite"),
        ({"countdown": 366 * 86_400 + 1}, "from 0 to 31,622,400 seconds"),
        ({"name": "a b"}, "1 to 500 characters"),
        ({"name": "abc\n"}, "1 to 500 characters"),
        ({"name": "x" * 501}, "1 to 500 characters"),
        ({"name": 5}, "1 to 500 characters"),
        ({"queue": "a_b"}, "1 to 100 characters"),
        ({"queue": "x" * 101}, "1 to 100 characters"),
        ({"queue": "abc\n"}, "1 to 100 characters"),
        ({"queue": ""}, "1 to 100 characters"),
        ({"priority": 1001}, "from -1,000 to 1,000"),
        ({"priority": 1.5}, "whole number"),
        ({"priority": True}, "whole number"),
        ({"priority": None}, "whole number"),
        ({"tag": "x" * 501}, "500 characters"),
        ({"tag": 5}, "must be text"),
        ({"key": "\ud800"}, "no Unicode text"),
        ({"deadline": 0.5}, "from 1 to 2,592,000 seconds"),
        ({"retain": -1}, "from 0 to 2,592,000 seconds"),
        ({"headers": {"a b": "x"}}, "header's name"),
        ({"headers": {"a": 5}}, "must be text"),
        ({"headers": {"a": "x" * 2001}}, "2,000 characters"),
        ({"headers": {f"h{i}": "" for i in range(65)}}, "64 at most"),
        ({"headers": [("a", "b")]}, "must be a mapping"),
        ({"retry": 5}, "must be an adjourn.Retry"),
    ],
)
def test_faulty_option_is_refused_with_its_rule(options, words):
    with pytest.raises(adjourn.OptionError, match=words) as refusal:
        TaskOptions(**options)
    assert isinstance(refusal.value, ValueError)


def test_every_option_reaches_the_wire():
    request = wire(
        TaskOptions(
            name="welcome-42",
            headers={"traceparent": "00-1"},
            priority=-5,
            tag="\x00 ünïcode",
            key="customer-7",
            deadline=dt.timedelta(minutes=5),
            retain=3600,
            retry=Retry(
                max_attempts=5, max_age=60, min_backoff=1, max_backoff=10, max_doublings=2, stop="all", jitter=0.5
            ),
        )
    )
    task = request.task
    assert (request.task_id, task.priority, task.tag, task.key) == ("welcome-42", -5, "\x00 ünïcode", "customer-7")
    assert dict(task.headers) == {"traceparent": "00-1"}
    assert (task.deadline.seconds, task.retain.seconds) == (300, 3600)
    policy = task.retry_policy
    assert (policy.max_attempts, policy.max_doublings, policy.stop, policy.jitter) == (
        5,
        2,
        queue_pb2.STOP_RULE_ALL,
        0.5,
    )
    assert (policy.max_age.seconds, policy.min_backoff.seconds, policy.max_backoff.seconds) == (60, 1, 10)


def test_nothing_is_sent_that_was_not_set():
    task = wire(NO_OPTIONS).task
    assert {field.name for field, _ in task.ListFields()} == {"callable", "payload"}
    task = wire(TaskOptions(tag="", name="", headers={}, retry=Retry())).task
    assert {field.name for field, _ in task.ListFields()} == {"callable", "payload", "retry_policy"}
    assert {field.name for field, _ in task.retry_policy.ListFields()} == {"stop"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_attempts": -1}, "from 0 to 1,000,000"),
        ({"max_attempts": 2.0}, "whole number"),
        ({"min_backoff": 5, "max_backoff": 1}, "must not be less"),
        ({"min_backoff": -1}, "from 0"),
        ({"max_doublings": -1}, "from 0"),
        ({"max_age": 366 * 86_400}, "from 0 to 31,536,000"),
        ({"stop": "either"}, "'any' or 'all'"),
        ({"jitter": 1.5}, "from 0 to 1"),
    ],
)
def test_faulty_retry_is_refused(fields, words):
    with pytest.raises(adjourn.OptionError, match=words):
        Retry(**fields)


# The seed form


def test_options_are_taken_out_of_the_arguments():
    options, arguments = split_seed_options({"_countdown": 60, "_queue": "mail", "subject": "hi", "x_": 1})
    assert (options.countdown, options.queue) == (60, "mail")
    assert arguments == {"subject": "hi", "x_": 1}


@pytest.mark.parametrize(
    ("typo", "meant"), [("_cuntdown", "_countdown"), ("_retry", "_retry_options"), ("_nam", "_name")]
)
def test_unknown_option_is_refused_with_the_closest_known_one(typo, meant):
    with pytest.raises(adjourn.OptionError, match=f"unknown option '{typo}'; did you mean '{meant}'"):
        split_seed_options({typo: 1})


@pytest.mark.parametrize("name", ["_target", "_transactional"])
def test_what_is_not_there_yet_says_so(name):
    with pytest.raises(adjourn.NotYetError, match=f"{name} is not supported yet"):
        split_seed_options({name: "v2"})
    assert split_seed_options({name: None}) == (NO_OPTIONS, {})
    assert split_seed_options({"_transactional": False}) == (NO_OPTIONS, {})


@pytest.mark.parametrize("url", [None, "", "/_ah/queue/deferred"])
def test_default_url_is_accepted(url):
    assert split_seed_options({"_url": url}) == (NO_OPTIONS, {})


def test_other_url_is_refused():
    with pytest.raises(adjourn.OptionError, match="no meaning here"):
        split_seed_options({"_url": "/work"})


def test_options_given_as_none_are_defaults():
    names = [
        "countdown",
        "eta",
        "name",
        "queue",
        "retry_options",
        "headers",
        "priority",
        "tag",
        "key",
        "deadline",
        "retain",
    ]
    options, _ = split_seed_options({f"_{name}": None for name in names})
    assert options == NO_OPTIONS


# App Engine's retry options


def test_appengine_limits_mean_the_same():
    retry = TaskRetryOptions(task_retry_limit=3, task_age_limit=59.5, min_backoff_seconds=1).to_retry()
    assert retry == Retry(max_attempts=4, max_age=60, min_backoff=1, stop="all")


def test_appengine_without_limits_is_unlimited():
    assert TaskRetryOptions().to_retry() == Retry(max_attempts=0, stop="all")
    assert TaskRetryOptions().task_retry_limit is None


def test_appengine_options_of_another_library_are_read():
    foreign = SimpleNamespace(
        task_retry_limit=0, task_age_limit=None, min_backoff_seconds=None, max_backoff_seconds=7, max_doublings=2
    )
    options, _ = split_seed_options({"_retry_options": foreign})
    assert options.retry == Retry(max_attempts=1, max_backoff=7, max_doublings=2, stop="all")


def test_unknown_appengine_option_is_a_type_error():
    with pytest.raises(TypeError, match="no option 'max_retries'"):
        TaskRetryOptions(max_retries=1)


@pytest.mark.parametrize(
    "fields",
    [
        {"min_backoff_seconds": -1},
        {"max_backoff_seconds": -0.1},
        {"max_doublings": -1},
        {"task_retry_limit": -1},
        {"task_age_limit": -1},
        {"min_backoff_seconds": 5, "max_backoff_seconds": 4},
        {"task_retry_limit": 1.5},
    ],
)
def test_faulty_appengine_options_are_refused(fields):
    with pytest.raises(adjourn.OptionError):
        TaskRetryOptions(**fields)


def test_all_appengine_options_are_kept():
    fields = {
        "min_backoff_seconds": 1,
        "max_backoff_seconds": 2,
        "task_age_limit": 3,
        "max_doublings": 4,
        "task_retry_limit": 5,
    }
    options = TaskRetryOptions(**fields)
    assert {name: getattr(options, name) for name in fields} == fields
