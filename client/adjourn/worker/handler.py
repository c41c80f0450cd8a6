"""Payload -> call -> Outcome. Whatever a payload holds and a call does, there is an outcome and no exception."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Protocol

from adjourn import payload as payloads
from adjourn.context import TaskContext, enter_task, leave_task
from adjourn.errors import (
    CallableNotFound,
    PayloadError,
    PayloadFormatError,
    PayloadSignatureError,
    PermanentTaskFailure,
    SingularTaskFailure,
)
from adjourn.worker.outcome import RESULT_BYTES_MAX, SUCCEEDED, Outcome, OutcomeKind, ended_with_error, raised

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

    from adjourn.signing import SigningKeys
    from adjourn.worker.frames import TaskFrame

logger = logging.getLogger("adjourn.worker")


class CoroutineRunner(Protocol):
    """As asyncio.Runner.run."""

    def __call__(self, coro: Coroutine[Any, Any, Any], *, context: contextvars.Context) -> Any:
        """Run the coroutine to its end in the context; return or raise what it does."""


class Handler:
    """Runs tasks in this process.

    `keys` check and sign payloads, None for neither; `run_coroutine` runs a coroutine to its end on the process's loop.
    """

    def __init__(self, keys: SigningKeys | None, run_coroutine: CoroutineRunner) -> None:
        self._keys = keys
        self._run_coroutine = run_coroutine

    def run(self, task: TaskFrame) -> Outcome:
        """Run one attempt; never raises. Returns SUCCEEDED itself if it succeeded and its result is not wanted."""
        lease_id, name, attempt, payload, keep_result, headers, uid, dotted_name, tag, key = task
        try:
            function, args, kwargs = payloads.decode_call(payload, self._keys)
        except BaseException as error:  # noqa: BLE001 - unpickling runs the user's code, which may raise anything.
            return _undecodable(name, attempt, error)
        token = enter_task(
            TaskContext(
                name=name,
                queue=name[len("queues/") : name.find("/", len("queues/"))],
                attempt=attempt,
                uid=uid,
                callable=dotted_name,
                headers=headers or {},
                tag=tag,
                key=key,
                lease_id=lease_id,
            )
        )
        try:
            value = function(*args, **kwargs)
            # Seen by its value, so that a partial or a decorator around a coroutine function works like the function.
            if value is not None and isinstance(value, Awaitable):
                value = self._run_coroutine(_awaited(value), context=contextvars.copy_context())
        except BaseException as error:  # noqa: BLE001 - SystemExit and the like end the attempt, not the child.
            return _failed(name, attempt, error)
        finally:
            leave_task(token)
        return self._succeeded(name, attempt, value) if keep_result else SUCCEEDED

    def _succeeded(self, name: str, attempt: int, value: object) -> Outcome:
        # The task has run, and running it again would not make its result fit: what fails here fails for good.
        try:
            result = payloads.encode_result(value, self._keys)
        except BaseException as error:
            logger.exception("result cannot be kept task=%s attempt=%d", name, attempt)
            return raised(OutcomeKind.FAILED, error, reason="the task succeeded, but its result cannot be kept")
        if len(result) > RESULT_BYTES_MAX:
            logger.error("result is too large task=%s attempt=%d", name, attempt)
            return ended_with_error(
                OutcomeKind.FAILED,
                "ResultTooLarge",
                f"the task succeeded, but its result has {len(result):,} bytes "
                f"and at most {RESULT_BYTES_MAX:,} are kept; "
                "store it elsewhere and return its name",
            )
        return Outcome(int(OutcomeKind.SUCCEEDED), result)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _failed(name: str, attempt: int, error: BaseException) -> Outcome:
    error = error.with_traceback(_part_of_task(error.__traceback__))
    if isinstance(error, PermanentTaskFailure):
        logger.error("task failed for good task=%s attempt=%d", name, attempt, exc_info=error)
        return raised(OutcomeKind.FAILED, error)
    if isinstance(error, SingularTaskFailure):
        logger.debug("task asked for a retry task=%s attempt=%d", name, attempt)
    else:
        logger.warning("attempt failed task=%s attempt=%d", name, attempt, exc_info=error)
    return raised(OutcomeKind.RETRY, error)


def _part_of_task(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback without the frames that led into the task: this module's, and asyncio's between them."""
    entry = step = trace
    while step is not None:
        if step.tb_frame.f_code.co_filename == __file__:
            entry = step.tb_next
        step = step.tb_next
    return entry


def _undecodable(name: str, attempt: int, error: BaseException) -> Outcome:
    if isinstance(error, PayloadFormatError | PayloadSignatureError):
        logger.error("payload refused task=%s attempt=%d: %s", name, attempt, error)
        return raised(OutcomeKind.FAILED, error)
    if isinstance(error, CallableNotFound):
        logger.warning("code not found task=%s attempt=%d: %s", name, attempt, error)
        return raised(
            OutcomeKind.RETRY,
            error,
            reason="this worker's code is older or newer than the caller's, or lacks a package",
        )
    logger.warning("payload cannot be unpickled task=%s attempt=%d", name, attempt, exc_info=error)
    return raised(
        OutcomeKind.RETRY, error, reason="" if isinstance(error, PayloadError) else "while unpickling the call"
    )
