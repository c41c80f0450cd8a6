"""The drop-in, by the behaviours of App Engine's own deferred_test and the defects that are mended."""

from __future__ import annotations

import io
import logging
from http import HTTPStatus
from typing import Any

import pytest

from adjourn import deferred, errors
from adjourn.payload import decode_call
from tests.unit.client import samples
from tests.unit.client.samples import Greeter


def test_public_names_are_those_of_app_engine():
    names = {"Error", "Handler", "PermanentTaskFailure", "SingularTaskFailure", "TaskHandler", "application", "defer"}
    names |= {"invoke_member", "run", "run_from_datastore", "serialize", "set_log_level"}
    assert names <= set(deferred.__all__)
    assert isinstance(deferred.application, deferred.Handler)
    assert issubclass(deferred.PermanentTaskFailure, deferred.Error)
    assert issubclass(deferred.SingularTaskFailure, deferred.Error)


# serialize and run


@pytest.mark.parametrize(
    ("function", "args", "result"),
    [
        (samples.add, (1, 2), 3),
        (Greeter("hi"), ("you",), "hi, you"),
        (Greeter("hi").greet, ("you",), "hi you"),
        (Greeter.shout, ("you",), "YOU"),
        (samples.add_async, (1, 2), 3),
        (samples.send_mail, (1, "abc"), 4),
    ],
)
def test_run_returns_what_the_call_returns(function, args, result):
    assert deferred.run(deferred.serialize(function, *args)) == result


def test_serialize_passes_any_keyword_on():
    assert deferred.run(deferred.serialize(samples.takes_obj, obj=1, membername=2)) == (1, 2)
    assert deferred.run(deferred.serialize(Greeter("hi").greet, name="a", membername="b")) == "hi ab"


@pytest.mark.parametrize("data", [b"", b"garbage", deferred.serialize(samples.add, 1)[:-4]])
def test_unreadable_payload_is_a_permanent_failure(data):
    with pytest.raises(deferred.PermanentTaskFailure):
        deferred.run(data)


def test_code_that_is_gone_is_retried_and_not_dropped():
    data = deferred.serialize(samples.add, 1).replace(b"\x03add", b"\x03xyz")
    with pytest.raises(errors.CallableNotFound) as failure:
        deferred.run(data)
    assert not isinstance(failure.value, deferred.PermanentTaskFailure)


@pytest.mark.parametrize("error", [ValueError("x"), deferred.Error("x"), deferred.SingularTaskFailure("x")])
def test_exceptions_of_the_call_pass_through(error):
    with pytest.raises(type(error)):
        deferred.run(deferred.serialize(samples.fail, error))


def test_missing_datastore_entity_is_a_permanent_failure():
    with pytest.raises(deferred.PermanentTaskFailure):
        deferred.run_from_datastore("agx")


def test_invoke_member_takes_any_keyword():
    assert deferred.invoke_member(Greeter("hi"), "greet", name="a", membername="b") == "hi ab"


# defer


def test_defer_returns_the_task_as_app_engine_does(service):
    task = deferred.defer(samples.add, 1, _name="x", _countdown=5)
    assert (task.name, task.queue_name, task.was_enqueued) == ("x", "default", True)
    assert task.get().countdown.seconds == 5
    generated = deferred.defer(samples.add, 1, 2)
    assert generated.get().uid == generated.name


def test_defer_understands_retry_options(service):
    retry = deferred.TaskRetryOptions(task_retry_limit=2)
    task = deferred.defer(samples.add, 1, _retry_options=retry).get()
    assert task.retry_policy.max_attempts == 3
    call = decode_call(task.payload)
    assert (call.args, call.kwargs) == ((1,), {})


def test_callers_content_type_wins(service):
    task = deferred.defer(samples.add, 1, _headers={"Content-Type": "text/plain"}).get()
    assert task.headers["Content-Type"] == "text/plain"


@pytest.mark.parametrize(
    ("function", "kind"),
    [(42, ValueError), (samples.module_lambda, AttributeError), (samples.make_closure(), AttributeError)],
)
def test_what_cannot_run_is_refused_when_deferring(service, function, kind):
    with pytest.raises(kind):
        deferred.defer(function)
    assert service.calls == []


# The handler


def request(data: bytes, **changes: Any) -> dict[str, Any]:
    environ = {
        "REQUEST_METHOD": "POST",
        "SERVER_SOFTWARE": "Google App Engine",
        "REMOTE_ADDR": "0.1.0.2",
        "HTTP_X_APPENGINE_TASKNAME": "task1",
        "HTTP_X_APPENGINE_QUEUENAME": "default",
        "CONTENT_LENGTH": str(len(data)),
        "wsgi.input": io.BytesIO(data),
    }
    return {name: value for name, value in (environ | changes).items() if value is not None}


def post(data: bytes, **changes: Any) -> tuple[str, int]:
    body, status, _ = deferred.Handler().post(request(data, **changes))
    return body, status


RECORD = deferred.serialize(samples.record, 1)


@pytest.fixture(autouse=True)
def nothing_ran():
    samples.ran.clear()


def test_posted_task_runs(caplog):
    caplog.set_level(logging.INFO)
    assert post(RECORD) == ("Success", 200)
    assert samples.ran == [((1,), {})]
    assert "X_APPENGINE_TASKNAME:task1, X_APPENGINE_QUEUENAME:default" in caplog.text


def test_level_of_the_line_with_the_headers_can_be_set(caplog):
    caplog.set_level(logging.DEBUG)
    deferred.set_log_level(logging.DEBUG)
    try:
        post(RECORD)
    finally:
        deferred.set_log_level(logging.INFO)
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]


def test_permanent_failure_is_done_and_logged_as_an_error(caplog):
    data = deferred.serialize(samples.fail, deferred.PermanentTaskFailure("no"))
    assert post(data) == ("PermanentTaskFailure", 200)
    assert caplog.records[-1].levelno == logging.ERROR
    assert caplog.records[-1].exc_info


def test_garbage_is_done(caplog):
    assert post(b"garbage") == ("PermanentTaskFailure", 200)
    assert post(RECORD, CONTENT_LENGTH="many") == ("PermanentTaskFailure", 200)
    assert post(RECORD, CONTENT_LENGTH=None) == ("PermanentTaskFailure", 200)


def test_singular_failure_is_retried_quietly(caplog):
    caplog.set_level(logging.DEBUG)
    assert post(deferred.serialize(samples.fail, deferred.SingularTaskFailure())) == ("SingularTaskFailure", 408)
    assert caplog.records[-1].levelno == logging.DEBUG
    assert not caplog.records[-1].exc_info


@pytest.mark.parametrize("error", [ValueError("x"), deferred.Error("x")])
def test_other_failures_are_left_to_the_server(error):
    with pytest.raises(type(error)):
        post(deferred.serialize(samples.fail, error))


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"HTTP_X_APPENGINE_TASKNAME": None}, 403),
        ({"HTTP_X_APPENGINE_TASKNAME": None, "SERVER_SOFTWARE": "Development/1.0"}, 403),
        ({"REMOTE_ADDR": "1.2.3.4"}, 403),
        ({"SERVER_SOFTWARE": None, "REMOTE_ADDR": "1.2.3.4"}, 403),
        ({"SERVER_SOFTWARE": "Development/1.0", "REMOTE_ADDR": "1.2.3.4"}, 200),
        ({}, 200),
    ],
)
def test_only_requests_of_a_task_queue_run(caplog, changes, status):
    assert post(RECORD, **changes)[1] == status
    assert len(samples.ran) == (status == HTTPStatus.OK)
    if status == HTTPStatus.FORBIDDEN:
        assert caplog.records[-1].levelno == logging.ERROR
        assert "XSRF" in caplog.text


@pytest.mark.parametrize(
    ("method", "status", "body"), [("POST", "200 OK", b"Success"), ("GET", "405 Method Not Allowed", b"")]
)
def test_application_speaks_wsgi(method, status, body):
    started = []
    answer = deferred.application(request(RECORD, REQUEST_METHOD=method), lambda *args: started.append(args))
    assert b"".join(answer) == body
    assert started[0][0] == status
