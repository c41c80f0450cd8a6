"""Every payload and every call ends in an outcome."""

import asyncio
import logging
import pickle
from typing import Any

import pytest

from adjourn.payload import SigningKeys, decode_result, encode_call
from adjourn.worker.frames import TaskFrame
from adjourn.worker.handler import Handler
from adjourn.worker.outcome import SUCCEEDED, OutcomeKind

from . import tasks

KEYS = SigningKeys([("k1", b"0123456789abcdef")])


@pytest.fixture
def handler():
    with asyncio.Runner() as loop:
        yield Handler(None, loop.run)


def frame(
    payload: bytes, *, keep_result: bool = False, attempt: int = 1, headers: dict[str, str] | None = None
) -> TaskFrame:
    return ("lease-1", "queues/mail/tasks/t1", attempt, payload, keep_result, headers, "uid", "m.f", "", "")


def call(function: Any, *args: Any, keys: SigningKeys | None = None, **options: Any) -> TaskFrame:
    return frame(encode_call(function, args, {}, keys).payload, **options)


def test_a_return_is_a_success_and_costs_no_message(handler):
    assert handler.run(call(tasks.add, 1, 2)) is SUCCEEDED


def test_a_result_is_kept_only_if_asked_for(handler):
    outcome = handler.run(call(tasks.add, 1, 2, keep_result=True))
    assert outcome.kind == OutcomeKind.SUCCEEDED
    assert decode_result(outcome.result) == 3


@pytest.mark.parametrize("function", [tasks.add_slowly, tasks.give_coroutine])
def test_coroutines_are_awaited(handler, function):
    assert decode_result(handler.run(call(function, 1, 2, keep_result=True)).result) == 3


def test_all_coroutines_run_on_one_loop(handler):
    results = {handler.run(call(tasks.loop_id, keep_result=True)).result for _ in range(3)}
    assert len(results) == 1


def test_the_task_knows_itself(handler):
    outcome = handler.run(call(tasks.name_and_attempt, keep_result=True, attempt=4, headers={"trace": "1"}))
    assert decode_result(outcome.result) == ("queues/mail/tasks/t1", "mail", 4, {"trace": "1"})
    outcome = handler.run(call(tasks.name_in_coroutine, keep_result=True))
    assert decode_result(outcome.result) == "queues/mail/tasks/t1"


@pytest.mark.parametrize(
    ("function", "kind", "error_type"),
    [
        (tasks.raise_error, OutcomeKind.RETRY, "RuntimeError"),
        (tasks.raise_permanent, OutcomeKind.FAILED, "adjourn.errors.PermanentTaskFailure"),
        (tasks.raise_singular, OutcomeKind.RETRY, "adjourn.errors.SingularTaskFailure"),
        (tasks.leave, OutcomeKind.RETRY, "SystemExit"),
        (tasks.interrupt, OutcomeKind.RETRY, "KeyboardInterrupt"),
        (tasks.leave_in_coroutine, OutcomeKind.RETRY, "SystemExit"),
        (tasks.raise_unprintable, OutcomeKind.RETRY, f"{tasks.__name__}.Unprintable"),
    ],
)
def test_whatever_is_raised_is_an_outcome(handler, function, kind, error_type):
    outcome = handler.run(call(function))
    assert (outcome.kind, outcome.error_type) == (kind, error_type)
    assert function.__name__ in outcome.error_traceback
    assert "handler.py" not in outcome.error_traceback.partition("tasks.py")[0]


def test_a_coroutine_that_left_does_not_spoil_the_loop(handler):
    handler.run(call(tasks.leave_in_coroutine))
    assert handler.run(call(tasks.add_slowly, 1, 2)) is SUCCEEDED


@pytest.mark.parametrize(
    ("function", "level", "traced"),
    [
        (tasks.raise_error, logging.WARNING, True),
        (tasks.raise_permanent, logging.ERROR, True),
        (tasks.raise_singular, logging.DEBUG, False),
    ],
)
def test_how_loudly_a_failure_is_logged(handler, caplog, function, level, traced):
    caplog.set_level(logging.DEBUG)
    handler.run(call(function))
    (record,) = [record for record in caplog.records if record.name == "adjourn.worker"]
    assert (record.levelno, bool(record.exc_info)) == (level, traced)


def test_code_that_is_not_here_is_retried_with_the_reason(handler):
    payload = encode_call(tasks.noop, (), {}).payload
    outcome = handler.run(frame(payload.replace(b"noop", b"gone")))
    assert outcome.kind == OutcomeKind.RETRY
    assert outcome.error_type == "adjourn.errors.CallableNotFound"
    assert "older or newer" in outcome.error_message
    assert "gone" in outcome.error_message


@pytest.mark.parametrize("payload", [b"", b"garbage", pickle.dumps((print, (), {}))])
def test_garbage_is_a_dead_letter(handler, payload):
    outcome = handler.run(frame(payload))
    assert (outcome.kind, outcome.error_type) == (OutcomeKind.FAILED, "adjourn.errors.PayloadFormatError")


class Grenade:
    """Refuses to be restored."""

    def __reduce__(self):
        return tasks.raise_error, ("while unpickling",)


def test_an_argument_that_cannot_be_restored_is_retried(handler):
    outcome = handler.run(call(tasks.add, Grenade(), 1))
    assert (outcome.kind, outcome.error_type) == (OutcomeKind.RETRY, "adjourn.errors.PayloadUnpickleError")
    assert "while unpickling" in outcome.error_message


class Trap:
    """Exits the process that unpickles it."""

    def __reduce__(self):
        return tasks.leave, (1,)


def test_unpickling_cannot_end_the_child(handler):
    assert handler.run(call(tasks.add, Trap(), 1)).kind == OutcomeKind.RETRY


def test_with_keys_only_signed_payloads_run():
    with asyncio.Runner() as loop:
        handler = Handler(KEYS, loop.run)
        assert handler.run(call(tasks.noop, keys=KEYS)) is SUCCEEDED
        unsigned = handler.run(call(tasks.noop))
        assert (unsigned.kind, unsigned.error_type) == (OutcomeKind.FAILED, "adjourn.errors.PayloadSignatureError")
        signed = encode_call(tasks.noop, (), {}, KEYS).payload
        assert handler.run(frame(signed[:-1] + b"!")).kind == OutcomeKind.FAILED


def test_a_result_that_cannot_be_kept_is_a_dead_letter_that_says_so(handler):
    outcome = handler.run(call(tasks.return_unpicklable, keep_result=True))
    assert outcome.kind == OutcomeKind.FAILED
    assert outcome.error_message.startswith("the task succeeded, but its result cannot be kept: ")
    outcome = handler.run(call(tasks.return_bytes, 1024 * 1024 + 1, keep_result=True))
    assert outcome.kind == OutcomeKind.FAILED
    assert "at most 1,048,576 are kept" in outcome.error_message


def test_a_result_that_nobody_wants_need_not_be_picklable(handler):
    assert handler.run(call(tasks.return_unpicklable)) is SUCCEEDED
