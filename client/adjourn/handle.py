"""A deferred task as its producer sees it: where it is, whether it has ended, what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from adjourn.errors import ResultNotRetained, TaskCancelled, TaskFailed, TaskNotFound, WaitTimeout
from adjourn.options import task_name
from adjourn.payload import decode_result

if TYPE_CHECKING:
    from adjourn.aio import AsyncClient
    from adjourn.client import Client
    from adjourn.signing import SigningKeys
    from adjourn.v1.task_pb2 import Task

T_co = TypeVar("T_co", covariant=True)


class TaskHandle(Generic[T_co]):
    """A task of the service. Cheap to make and to keep; it may be pickled and made again from the name.

    Methods call the service with the client of this process and raise ServiceError: TaskNotFound, for one, when the
    task succeeded and was not retained. Each has a twin for asyncio."""

    __slots__ = ("_name", "_uid")

    def __init__(self, name: str, uid: str | None = None) -> None:
        """Name a task, as `queues/mail/tasks/x` or `mail/tasks/x`.

        Raises: OptionError."""
        self._name = task_name(name)
        self._uid = uid

    @classmethod
    def of_created(cls, name: str, uid: str) -> Self:
        """Return a handle whose full name need not be checked, for the path that every deferred call takes."""
        handle = cls.__new__(cls)
        handle._name, handle._uid = name, uid  # noqa: SLF001  -- a constructor of this class.
        return handle

    @property
    def name(self) -> str:
        """Resource name, `queues/{queue}/tasks/{task}`."""
        return self._name

    @property
    def id(self) -> str:
        """Last part of the name: the name given at the call, or else the uid."""
        return self._name.rpartition("/")[2]

    @property
    def uid(self) -> str | None:
        """UUIDv7 of the task; None if the handle was made from a name."""
        return self._uid

    @property
    def queue(self) -> str:
        """Id of the queue."""
        return self._name.split("/")[1]

    def get(self) -> Task:
        """Read the task."""
        return _client().get_task(self._name)

    def cancel(self) -> Task:
        """Cancel the task: it never runs, or is stopped if it does. Raises TaskStateError if it has ended."""
        return _client().cancel_task(self._name)

    def wait(self, timeout: float | None = None) -> Task:
        """Wait until the task has ended, however; None: for ever.

        Raises: WaitTimeout after `timeout` seconds."""
        return _ended(_client().wait_task(self._name, timeout), timeout)

    def result(self, timeout: float | None = None) -> T_co:
        """Wait until the task has ended and return what it returned. Only for tasks that are retained (`_retain`).

        Raises: TaskFailed, TaskCancelled, ResultNotRetained, WaitTimeout, PayloadError."""
        client = _client()
        try:
            task = self.wait(timeout)
        except TaskNotFound as error:
            raise self._gone() from error
        result: T_co = _result(task, client.config.signing_keys)
        return result

    async def aget(self) -> Task:
        """As `get`."""
        return await _async_client().get_task(self._name)

    async def acancel(self) -> Task:
        """As `cancel`."""
        return await _async_client().cancel_task(self._name)

    async def await_end(self, timeout: float | None = None) -> Task:  # noqa: ASYNC109  -- the service does the waiting.
        """As `wait`."""
        return _ended(await _async_client().wait_task(self._name, timeout), timeout)

    async def aresult(self, timeout: float | None = None) -> T_co:  # noqa: ASYNC109  -- the service does the waiting.
        """As `result`."""
        client = _async_client()
        try:
            task = await self.await_end(timeout)
        except TaskNotFound as error:
            raise self._gone() from error
        result: T_co = _result(task, client.config.signing_keys)
        return result

    def _gone(self) -> ResultNotRetained:
        return ResultNotRetained(
            f"{self._name} is not there: it succeeded and was not retained, or it was deleted. Defer it with "
            "_retain=SECONDS, or give the queue a result_retention, to keep its result."
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskHandle) and self._name == other._name

    def __hash__(self) -> int:
        return hash(self._name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"


def _client() -> Client:
    from adjourn.client import default_client

    return default_client()


def _async_client() -> AsyncClient:
    from adjourn.aio import default_async_client

    return default_async_client()


def _ended(task: Task, timeout: float | None) -> Task:
    from adjourn.calls import has_ended

    if not has_ended(task):
        raise WaitTimeout(f"{task.name} has not ended within {timeout:g} s")
    return task


def _result(task: Task, keys: SigningKeys | None) -> Any:
    from adjourn.v1 import task_pb2

    if task.status.state == task_pb2.TASK_STATE_CANCELLED:
        raise TaskCancelled(f"{task.name} was cancelled")
    if task.status.state == task_pb2.TASK_STATE_DEAD:
        error = task.status.attempts[-1].error if task.status.attempts else task_pb2.TaskError()
        raise TaskFailed(
            f"{task.name} failed for good in attempt {task.status.attempt_count}: {error.type}: {error.message}",
            remote_type=error.type,
            remote_message=error.message,
            remote_traceback=error.traceback,
        )
    if not task.status.result:
        raise ResultNotRetained(f"{task.name} succeeded without keeping its result; defer it with _retain=SECONDS")
    return decode_result(task.status.result, keys)
