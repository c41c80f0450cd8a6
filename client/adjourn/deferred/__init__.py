"""Drop-in for `google.appengine.ext.deferred`: the same names, the same behaviour, its defects mended.

    from adjourn import deferred
    deferred.defer(do_something, 42, _countdown=60)

What differs, on purpose: an unknown `_option` is refused instead of being passed on; parameters called `obj` and
`membername` may be given by name; what would fail in the worker (arity, generators, code of `__main__`, lost names) is
refused at the call; coroutine functions are awaited; code that a worker does not have is retried instead of dropped."""

from __future__ import annotations

from adjourn.deferred.calls import Task, defer, run, run_from_datastore, serialize
from adjourn.deferred.handler import Handler, TaskHandler, application, set_log_level
from adjourn.deferred.retry_options import TaskRetryOptions
from adjourn.errors import Error, PermanentTaskFailure, SingularTaskFailure
from adjourn.payload import invoke_member

__all__ = [
    "Error",
    "Handler",
    "PermanentTaskFailure",
    "SingularTaskFailure",
    "Task",
    "TaskHandler",
    "TaskRetryOptions",
    "application",
    "defer",
    "invoke_member",
    "run",
    "run_from_datastore",
    "serialize",
    "set_log_level",
]
