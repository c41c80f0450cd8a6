"""What the workers of the tests run."""

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from adjourn.context import TaskContext, current_task
from adjourn.errors import PermanentTaskFailure, SingularTaskFailure


def noop():
    """Do nothing."""


def pause(seconds):
    time.sleep(seconds)


def add(a, b):
    return a + b


async def add_slowly(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


def give_coroutine(a, b):
    return add_slowly(a, b)


def loop_id():
    async def identify() -> int:
        return id(asyncio.get_running_loop())

    return identify()


def this_task() -> TaskContext:
    task = current_task()
    assert task is not None
    return task


def name_and_attempt():
    task = this_task()
    return task.name, task.queue, task.attempt, dict(task.headers)


async def name_in_coroutine():
    return this_task().name


def raise_error(text="broken"):
    raise RuntimeError(text)


def raise_permanent():
    raise PermanentTaskFailure("for good")


def raise_singular():
    raise SingularTaskFailure("again")


def leave(status=3):
    sys.exit(status)


def interrupt():
    raise KeyboardInterrupt


async def leave_in_coroutine():
    sys.exit(4)


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


def raise_unprintable():
    raise Unprintable


def return_unpicklable():
    return threading.Lock()


def return_bytes(count):
    return bytes(count)


def exit_at_once(status):
    os._exit(status)


def kill_self(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def segfault():
    ctypes.string_at(0)


def append(path: str, text: object) -> None:
    """Leave a trace of having run: one line, written whole."""
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


def tell_pid_and_wait(told, gate):
    """Tell the pid by one named pipe; then wait at the other."""
    Path(told).write_text(str(os.getpid()))
    wait_for(gate)


def wait_for(gate: str) -> None:
    """Wait at a named pipe until it is written to."""
    Path(gate).read_text()


def fork_and_return(path):
    """Fork, and let the fork return from the task as the original does."""
    pid = os.fork()
    append(path, "fork" if pid == 0 else "original")
    if pid:
        os.waitpid(pid, 0)


def imported():
    return sorted({name.partition(".")[0] for name in sys.modules})
