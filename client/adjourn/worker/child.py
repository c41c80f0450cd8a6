"""Entry of a child process: `python -m adjourn.worker.child SOCKET PAGE PARENT_PID SETTINGS`, started by child_process.

Imports neither gRPC nor protobuf, for memory and start-up time.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import importlib
import io
import json
import logging
import os
import runpy
import signal
import socket
import sys
import traceback
import types
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adjourn.config import ClientConfig
from adjourn.errors import ConfigError
from adjourn.worker import frames
from adjourn.worker.handler import Handler
from adjourn.worker.progress import ProgressPage
from adjourn.worker.runner import Runner
from adjourn.worker.settings import ChildSettings

if TYPE_CHECKING:
    from types import FrameType

_PR_SET_PDEATHSIG: Final = 1


class StartupError(Exception):
    """What the user asked a child to import cannot be imported; the text says which and why."""


def main(socket_fd: int, page_fd: int, parent_pid: int, settings: ChildSettings) -> int:
    """Run tasks until the parent closes the socket. Return the exit status."""
    _die_with(parent_pid)
    for number in (signal.SIGINT, signal.SIGTERM):
        # The main process decides when to stop. Not SIG_IGN: the programs that tasks start would inherit it.
        signal.signal(number, _leave_to_parent)
    for fd in (socket_fd, page_fd):
        os.set_inheritable(fd, False)
    # A crash in C code leaves a trace in the log, and what tasks print is there when they are killed.
    faulthandler.enable()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    logging.basicConfig(level=settings.log_level, format=settings.log_format)
    connection = socket.socket(fileno=socket_fd)
    page = ProgressPage(page_fd)
    os.close(page_fd)
    try:
        if settings.main_file is not None:
            run_as_main(settings.main_file)
        for name in settings.modules:
            import_module(name)
        keys = ClientConfig.from_environment().signing_keys
    except (StartupError, ConfigError) as error:
        connection.sendall(frames.encode((frames.BROKEN, str(error))))
        return 1
    with asyncio.Runner() as loop:
        Runner(connection, page, Handler(keys, loop.run).run).run()
    return 0


def import_module(name: str) -> None:
    """Import a module that the user named. Raises: StartupError."""
    try:
        importlib.import_module(name)
    except BaseException as error:
        raise StartupError(f"cannot import {name!r}: {_last_line(error)}\n{traceback.format_exc()}") from error


def run_as_main(path: str) -> None:
    """Run the file as `__mp_main__` and make that `__main__`, as multiprocessing does: what was pickled there is found.

    Raises: StartupError.
    """
    # What a task defers from this file is for workers that run it, as this one does.
    os.environ["ADJOURN_MAIN"] = path
    sys.path.insert(0, str(Path(path).resolve().parent))
    module = types.ModuleType("__mp_main__")
    try:
        module.__dict__.update(runpy.run_path(path, run_name="__mp_main__"))
    except BaseException as error:
        raise StartupError(f"cannot run {path!r}: {_last_line(error)}\n{traceback.format_exc()}") from error
    # The old __main__ is this module as a script, whose functions are still to run.
    sys.modules["__adjourn_child__"] = sys.modules["__main__"]
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _leave_to_parent(_signal: int, _frame: FrameType | None) -> None:
    pass


def _die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, however it dies. Elsewhere the socket's end must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), ChildSettings(**json.loads(sys.argv[4]))))
