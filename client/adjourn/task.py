"""@task: a function that knows how to be deferred and keeps its signature."""

from __future__ import annotations

import functools
import inspect
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack, overload

from adjourn.callables import BoundReference, ByReference
from adjourn.defer import adefer_with, defer_with
from adjourn.errors import GeneratorFunctionError, NotCallableError
from adjourn.options import NO_OPTIONS, TaskOptionArguments, TaskOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from adjourn.handle import TaskHandle

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
InstanceT = TypeVar("InstanceT")
MethodP = ParamSpec("MethodP")


class _Deferrable(Generic[P, R]):
    """The ways to defer `target` with `task_options`, all with the signature of the function."""

    task_options: TaskOptions

    @overload
    def defer(self: _Deferrable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[T]: ...
    @overload
    def defer(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]: ...
    def defer(self, /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Have the function called later by a worker; every argument goes to the function. See `adjourn.defer`."""
        return defer_with(self.task_options, self._target(), args, kwargs)

    @overload
    async def adefer(
        self: _Deferrable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[T]: ...
    @overload
    async def adefer(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]: ...
    async def adefer(self, /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """As `defer`, for asyncio."""
        return await adefer_with(self.task_options, self._target(), args, kwargs)

    def options(self, **changes: Unpack[TaskOptionArguments]) -> ConfiguredTask[P, R]:
        """Return the same function with other options, the fields of TaskOptions, to be deferred.

        >>> send_mail.options(countdown=60, name="welcome-42").defer(42)

        Raises: OptionError."""
        return ConfiguredTask(self._target(), self.task_options.merged(**changes))

    def _target(self) -> Any:
        """What is put into the payload."""
        raise NotImplementedError


class Task(ByReference, _Deferrable[P, R]):
    """What `@adjourn.task` makes of a function: call it as before, or defer it.

    It stands in the module under the function's name, and a worker finds it there."""

    __name__: str
    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[P, R], task_options: TaskOptions) -> None:
        """Wrap a function of a module or a class.

        Raises: NotCallableError, GeneratorFunctionError."""
        if isinstance(function, (staticmethod, classmethod)):
            raise NotCallableError(f"write @{type(function).__name__} above @adjourn.task, not below it")
        if not callable(function) or not hasattr(function, "__qualname__"):
            raise NotCallableError(f"@adjourn.task is for functions, and {function!r:.100} is none")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise GeneratorFunctionError(
                f"{function.__qualname__} is a generator function: calling it runs none of its body. "
                "Make a task of a function that consumes it."
            )
        self.function = function
        self.task_options = task_options
        functools.update_wrapper(self, function)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function here and now."""
        result: R = self.function(*args, **kwargs)
        return result

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(
        self: Task[Concatenate[InstanceT, MethodP], R], instance: InstanceT, owner: type | None = None, /
    ) -> BoundTask[MethodP, R]: ...
    def __get__(self, instance: Any, owner: type | None = None, /) -> Any:
        """Bind to an instance, as a function does that is called as a method."""
        return self if instance is None else BoundTask(MethodType(self, instance), self.task_options)

    def _target(self) -> Any:
        return self

    def __repr__(self) -> str:
        return f"<adjourn.task {self.__module__}.{self.__qualname__}>"


class BoundTask(BoundReference, _Deferrable[P, R]):
    """A task that is a method, with its instance: the instance is pickled with the call."""

    def __init__(self, method: MethodType, task_options: TaskOptions) -> None:
        self.method = method
        self.task_options = task_options

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the method here and now."""
        result: R = self.method(*args, **kwargs)
        return result

    def _target(self) -> Any:
        return self.method

    def __eq__(self, other: object) -> bool:
        # Also equal to the plain method: so a name can be checked to lead back to it.
        return self.method == (other.method if isinstance(other, BoundTask) else other)

    def __hash__(self) -> int:
        return hash(self.method)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        return getattr, (self.method.__self__, self.method.__name__)


class ConfiguredTask(_Deferrable[P, R]):
    """A task with other options than its own. Only for deferring."""

    def __init__(self, target: Any, task_options: TaskOptions) -> None:
        self.target = target
        self.task_options = task_options

    def _target(self) -> Any:
        return self.target


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(**options: Unpack[TaskOptionArguments]) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(function: Callable[..., Any] | None = None, /, **options: Unpack[TaskOptionArguments]) -> Any:
    """Make a function deferrable, as `@adjourn.task` or with options: `@adjourn.task(queue="mail", retain=3600)`.

    >>> @adjourn.task(queue="mail", retry=adjourn.Retry(max_attempts=5))
    ... def send_mail(user_id: int, subject: str = "hi") -> int: ...
    >>> send_mail.defer(42)

    `send_mail(42)` still calls it directly. Coroutine functions may be tasks, and below `@staticmethod` static methods.

    Raises: NotCallableError, GeneratorFunctionError, OptionError."""
    checked = NO_OPTIONS.merged(**options) if options else NO_OPTIONS
    if function is not None:
        return Task(function, checked)
    return functools.partial(Task, task_options=checked)
