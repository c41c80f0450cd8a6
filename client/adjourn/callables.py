"""What can be deferred: how a callable is named for another process, and why some callables are refused.

Everything here is decided at the call, where the programmer sees it, and not hours later in a worker's log."""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import sys
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn
from weakref import WeakKeyDictionary

from adjourn.errors import (
    ArityError,
    GeneratorFunctionError,
    MainModuleError,
    NotCallableError,
    NotDeferrableError,
    UnpicklableArgumentError,
    UnpicklableCallableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Of the wire API: Task.callable.
NAME_CHARACTERS_MAX: Final = 500

# How `__main__` is called in the children of multiprocessing.
MAIN_MODULES: Final = frozenset({"__main__", "__mp_main__"})

# Ways of calling one function that are remembered as good. Programs have a few; only calls of a `*args` function with
# ever new numbers of arguments reach the bound, and are then checked every time.
_SHAPES_MAX: Final = 256


class ByReference:
    """Base of objects that pickle as the name of the module attribute that holds them, as functions do.

    `function` is what a call of the object runs."""

    __qualname__: str
    function: Callable[..., Any]

    def __reduce__(self) -> str:
        return self.__qualname__


class BoundReference:
    """Base of objects that stand for a method of a `ByReference`, `method`."""

    method: MethodType


class CallableFacts:
    """What need be found out about a callable only once: its dotted name, and which arguments it takes."""

    __slots__ = ("_shapes", "_signature", "name", "name_utf8")

    def __init__(self, name: str, signature: inspect.Signature | None) -> None:
        self.name = name[:NAME_CHARACTERS_MAX]
        self.name_utf8 = self.name.encode("utf-8", "replace")
        self._signature = signature
        self._shapes: set[tuple[Any, ...]] = set()

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Return if the callable takes these arguments, as far as its signature is known.

        Raises: ArityError if it does not."""
        # Whether a call fits depends on the number of positional arguments and the names of the others only.
        shape = (len(args), *kwargs)
        if shape in self._shapes:
            return
        if self._signature is not None:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise ArityError(f"{self.name}{self._signature} does not take these arguments: {error}") from error
        if len(self._shapes) < _SHAPES_MAX:
            self._shapes.add(shape)

    def label(self, index: int) -> str:
        """Return how to speak of positional argument `index`, from 0: `argument 1 (user_id)`."""
        parameters = [] if self._signature is None else list(self._signature.parameters.values())
        named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return f"argument {index + 1}" + (f" ({named[index].name})" if index < len(named) else "")


_known: WeakKeyDictionary[Any, CallableFacts] = WeakKeyDictionary()


def facts_of(function: Any) -> CallableFacts:
    """Return the facts about a callable.

    Raises: NotCallableError, GeneratorFunctionError."""
    # Only these kinds are hashed by identity for certain, and only they come again and again.
    cacheable = isinstance(function, (FunctionType, type, ByReference))
    if cacheable and (facts := _known.get(function)) is not None:
        return facts
    if not callable(function):
        raise NotCallableError(
            f"obj must be callable, and {_short(function)} is not; give the function and its arguments apart: "
            "defer(f, x), not defer(f(x))"
        )
    facts = CallableFacts(dotted_name(function), _signature(function))
    if _is_generator_function(function):
        raise GeneratorFunctionError(
            f"{facts.name} is a generator function: calling it runs none of its body. Defer one that consumes it."
        )
    if cacheable:
        _known[function] = facts
    return facts


def dotted_name(function: Any) -> str:
    """Return the name under which people know a callable: `shop.mail.send`, `shop.cart.Cart.add`.

    A partial has the name of its function; a callable instance `its.Class.__call__`."""
    if isinstance(function, functools.partial):
        return dotted_name(function.func)
    if isinstance(function, (MethodType, BuiltinMethodType)) and not _is_module_function(function):
        owner = function.__self__ if isinstance(function.__self__, type) else type(function.__self__)
        return f"{dotted_name(owner)}.{_member_name(function)}"
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str):
        return f"{dotted_name(type(function))}.__call__"
    module: str | None = getattr(function, "__module__", None)
    if module is None and isinstance(holder := getattr(function, "__objclass__", None), type):
        module = holder.__module__
    if module in MAIN_MODULES:
        module = _main_module_name() or "__main__"
    return f"{module or 'builtins'}.{name}"


def returns_coroutine(function: Any) -> bool:
    """Tell whether a call of `function` gives a coroutine to await: coroutine functions, their partials, methods and
    tasks, and instances whose `__call__` is one."""
    function = plain(function)
    if isinstance(function, functools.partial):
        return returns_coroutine(function.func)
    if inspect.iscoroutinefunction(function):
        return True
    return not isinstance(function, type) and inspect.iscoroutinefunction(_call_method(function))


def invoke_member(obj: Any, membername: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a method by its name. Bound methods travel as a call of this, so its own name is part of the format."""
    return getattr(obj, membername)(*args, **kwargs)


def curry(function: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Return the callable and the positional arguments that stand for a call in the payload: methods become calls of
    `invoke_member`, everything else stays as it is.

    Raises: UnpicklableCallableError for a method that cannot be found again by name on its instance."""
    if isinstance(function, (MethodType, BuiltinMethodType)) and not _is_module_function(function):
        return invoke_member, (function.__self__, _member_name(function), *args)
    return function, args


def main_reference(obj: Any, main: str | None) -> tuple[str, str]:
    """Return module and qualified name by which a worker finds a function or class of this program's `__main__`.

    A program started with `python -m package.module` is known by that name. A script is known as `__main__` to workers
    that run the same file, which is what `main`, the path of that file, says.

    Raises: MainModuleError for any other."""
    if (name := _main_module_name()) is not None:
        return name, obj.__qualname__
    path = getattr(sys.modules["__main__"], "__file__", None)
    if main and path and _same_file(main, path):
        return "__main__", obj.__qualname__
    started = path or "an interactive session"
    mismatch = f" (ADJOURN_MAIN is {main!r}, another file)" if main else ""
    raise MainModuleError(
        f"cannot defer __main__.{obj.__qualname__}: workers cannot import it from {started}{mismatch}. Move it to "
        "a module, or start the program with `python -m`, or set ADJOURN_MAIN to this script and run `adjourn worker "
        "--main` with it."
    )


def raise_unpicklable(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], facts: CallableFacts, error: Exception
) -> NoReturn:
    """Find out which part of a call cannot be pickled and say so.

    Raises: UnpicklableCallableError or UnpicklableArgumentError, from `error`."""
    if isinstance(error, NotDeferrableError):
        raise error
    if (cause := _pickle_fault(function)) is not None:
        raise UnpicklableCallableError(f"cannot defer {facts.name}: {_why_unpicklable(function, cause)}") from error
    labelled = [(facts.label(index), value) for index, value in enumerate(args)]
    labelled += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for label, value in labelled:
        if (cause := _pickle_fault(value)) is not None:
            raise UnpicklableArgumentError(
                f"cannot defer {facts.name}: {label}, {_short(value)}, cannot be pickled ({cause}). "
                "Pass what the task needs to find or build it, such as an id."
            ) from error
    raise UnpicklableArgumentError(f"cannot defer {facts.name}: its arguments cannot be pickled ({error})") from error


def plain(function: Any) -> Any:
    """Return the function or method that a call of a `ByReference` or `BoundReference` runs; anything else as it is."""
    if isinstance(function, BoundReference):
        function = function.method
    if isinstance(function, ByReference):
        return function.function
    if isinstance(function, MethodType):
        under: object = function.__func__
        return MethodType(under.function, function.__self__) if isinstance(under, ByReference) else function
    return function


def _signature(function: Any) -> inspect.Signature | None:
    try:
        # The wrapper is what gets called: what it wraps may take other arguments.
        return inspect.signature(plain(function), follow_wrapped=False)
    except (TypeError, ValueError):
        return None  # Builtins without a text signature; let through.


def _is_generator_function(function: Any) -> bool:
    function = plain(function)
    if not isinstance(function, (FunctionType, MethodType, functools.partial, type)):
        function = _call_method(function)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _call_method(instance: Any) -> Any:
    return getattr(type(instance), "__call__", None)  # noqa: B004  -- the method itself is wanted, not whether there is one.


def _is_module_function(function: Any) -> bool:
    return function.__self__ is None or isinstance(function.__self__, ModuleType)


def _member_name(method: Any) -> str:
    """The attribute under which a bound method is found on its instance. Not always its `__name__`: a private name is
    mangled by its class, and a decorator may have lost it."""
    name: str = getattr(method, "__name__", "")
    owner = method.__self__
    if isinstance(method, BuiltinMethodType) or getattr(owner, name, None) == method:
        return name
    for cls in (owner if isinstance(owner, type) else type(owner)).__mro__:
        for attribute, value in vars(cls).items():
            if (
                method.__func__ in (value, getattr(value, "__func__", None))
                and getattr(owner, attribute, None) == method
            ):
                return attribute
    raise UnpicklableCallableError(
        f"cannot defer method {name!r} of {_short(owner)}: it is not an attribute of the object, "
        "so a worker could not find it"
    )


def _main_module_name() -> str | None:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    # `python directory` and `python archive.zip` have a spec too, but no name to import them by.
    return None if spec is None or spec.name == "__main__" else spec.name


@functools.lru_cache(maxsize=16)
def _same_file(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _pickle_fault(value: Any) -> Exception | None:
    try:
        pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001  -- anything may be raised by the reduce methods of users' classes.
        return error
    return None


def _why_unpicklable(function: Any, cause: Exception) -> str:
    while isinstance(function, functools.partial) and _pickle_fault(function.func) is not None:
        function = function.func
    if isinstance(function, MethodType):
        if _pickle_fault(function.__self__) is not None and not isinstance(function.__self__, type):
            return f"the object it is bound to, {_short(function.__self__)}, cannot be pickled ({cause})"
        function = function.__self__ if isinstance(function.__self__, type) else function.__func__
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if name.endswith("<lambda>"):
        return "a lambda has no name by which a worker could find it. Write it as a function of a module (def)."
    if "<locals>" in name:
        return "it is defined inside a function, where a worker cannot find it. Move it to the top level of its module."
    if isinstance(function, (FunctionType, type, ByReference)):
        return (
            f"{function.__module__}.{name} is not this object but another or nothing; a decorator, a rename or a "
            "reload has put something else there. Defer what the module holds under that name."
        )
    return f"{_short(function)} cannot be pickled ({cause})"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  -- a broken repr must not hide the error that is being told.
        text = f"<{type(value).__qualname__} object>"
    return text if len(text) <= 100 else f"{text[:97]}..."
