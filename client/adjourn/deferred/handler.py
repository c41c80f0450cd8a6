"""The WSGI handler that App Engine posts tasks to.

adjourn's workers do not use it; it serves applications that are moving and still have App Engine's own queues."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from adjourn.deferred.calls import run
from adjourn.errors import PermanentTaskFailure, SingularTaskFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Answer: TypeAlias = tuple[str, HTTPStatus, list[tuple[str, str]]]

# Where App Engine's requests come from, and what the names of its headers begin with.
_TASK_QUEUE_ADDRESS: Final = "0.1.0.2"
_HEADER_PREFIX: Final = "HTTP_X_APPENGINE_"

_TEXT: Final = ("Content-Type", "text/plain")

_log = logging.getLogger("adjourn.deferred")
_log_level = logging.INFO


def set_log_level(log_level: int) -> None:
    """Set the level of the one line that tells the headers of each task. Failures have levels of their own."""
    global _log_level
    _log_level = log_level


class Handler:
    """Runs posted tasks. The status tells App Engine what to do: 200 done or failed for good, any other try again."""

    def run_from_request(self, environ: dict[str, Any]) -> Answer:
        """Check that the request comes from a task queue, and run the call in its body.

        Raises: what `run` and the call raise."""
        if f"{_HEADER_PREFIX}TASKNAME" not in environ:
            return _forbid("Detected an attempted XSRF attack. The header 'X-AppEngine-Taskname' was not set.")
        in_development = environ.get("SERVER_SOFTWARE", "").startswith("Devel")
        if not in_development and environ.get("REMOTE_ADDR") != _TASK_QUEUE_ADDRESS:
            return _forbid("Detected an attempted XSRF attack. This request did not originate from Task Queue.")
        headers = (f"{k.removeprefix('HTTP_')}:{v}" for k, v in environ.items() if k.startswith(_HEADER_PREFIX))
        _log.log(_log_level, ", ".join(headers))
        run(_read_body(environ))
        return "Success", HTTPStatus.OK, [_TEXT]

    def post(self, environ: dict[str, Any]) -> Answer:
        """Run a posted task and answer: 200 also for a PermanentTaskFailure, 408 for a SingularTaskFailure.

        Raises: any other exception, which the server turns into 500 and App Engine into a retry."""
        try:
            return self.run_from_request(environ)
        except SingularTaskFailure:
            _log.debug("Failure executing task, task retry forced")
            return "SingularTaskFailure", HTTPStatus.REQUEST_TIMEOUT, [_TEXT]
        except PermanentTaskFailure:
            _log.exception("Permanent failure attempting to execute task")
            return "PermanentTaskFailure", HTTPStatus.OK, [_TEXT]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a WSGI request; only POST is allowed."""
        if environ.get("REQUEST_METHOD") == "POST":
            body, status, headers = self.post(environ)
        else:
            body, status, headers = "", HTTPStatus.METHOD_NOT_ALLOWED, [("Allow", "POST")]
        start_response(f"{status.value} {status.phrase}", headers)
        return [body.encode()]


# The name it has in the Python 2 SDK and in its documentation.
TaskHandler = Handler

application = Handler()


def _forbid(message: str) -> Answer:
    _log.error(message)
    return message, HTTPStatus.FORBIDDEN, [_TEXT]


def _read_body(environ: dict[str, Any]) -> bytes:
    try:
        length = max(0, int(environ.get("CONTENT_LENGTH") or 0))
    except ValueError:
        length = 0
    body: bytes = environ["wsgi.input"].read(length)
    return body
