"""Callables of every kind, at home in a module as users' code is."""

from __future__ import annotations

import functools
from typing import Any

import adjourn

ran: list[Any] = []


def add(a: int, b: int = 0) -> int:
    return a + b


def record(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    ran.append((args, kwargs))
    return args, kwargs


def takes_obj(obj: Any, membername: Any = None) -> tuple[Any, Any]:
    return obj, membername


def fail(error: Exception) -> None:
    raise error


async def add_async(a: int, b: int = 0) -> int:
    return a + b


def generate(n: int):
    yield from range(n)


async def generate_async(n: int):
    yield n


@functools.lru_cache
def cached(n: int) -> int:
    return n * 2


def _logged(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def _nameless(function: Any) -> Any:
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@_logged
def wrapped(a: int) -> int:
    return a


original = add


@functools.wraps(add)
def impostor() -> int:
    return -1


module_lambda = lambda: 1  # noqa: E731


class Greeter:
    def __init__(self, greeting: str = "hello") -> None:
        self.greeting = greeting

    def greet(self, name: str, membername: str = "") -> str:
        return f"{self.greeting} {name}{membername}"

    def __call__(self, name: str) -> str:
        return f"{self.greeting}, {name}"

    def __secret(self, name: str) -> str:
        return f"psst {name}"

    def secret(self) -> Any:
        return self.__secret

    @_nameless
    def renamed(self, name: str) -> str:
        return f"{self.greeting}... {name}"

    @classmethod
    def make(cls, greeting: str) -> Greeter:
        return cls(greeting)

    @staticmethod
    def shout(name: str) -> str:
        return name.upper()

    @adjourn.task
    def task_method(self, name: str) -> str:
        return f"{self.greeting} {name}"

    @staticmethod
    @adjourn.task
    def task_static(name: str) -> str:
        return name.upper()

    class Nested:
        def value(self) -> int:
            return 42

        @staticmethod
        def static() -> int:
            return 43


class Ephemeral:
    """An object with a method that its class does not have."""

    def __init__(self) -> None:
        self.method = _stray.__get__(self)


def _stray(self) -> int:
    return 1


class AsyncCallable:
    async def __call__(self) -> int:
        return 7


class Unrestorable:
    def __reduce__(self):
        return fail, (RuntimeError("boom"),)


@adjourn.task(queue="mail", retry=adjourn.Retry(max_attempts=5), retain=60)
def send_mail(user_id: int, subject: str = "hi") -> int:
    """Send a mail."""
    return user_id + len(subject)


@adjourn.task
async def send_async(user_id: int) -> int:
    return user_id


def make_lambda() -> Any:
    return lambda: 1


def make_closure() -> Any:
    captured = 1

    def closure():
        return captured

    return closure


def make_local_class() -> Any:
    class Local:
        def method(self):
            return 1

    return Local
