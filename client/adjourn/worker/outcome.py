"""How an attempt ended, as values that cross from a child to the main process and from there to the service."""

from __future__ import annotations

import enum
import traceback
from typing import Final, NamedTuple

# The bounds of adjourn.v1.TaskError and adjourn.v1.Settlement.result.
TYPE_CHARS_MAX: Final = 500
MESSAGE_CHARS_MAX: Final = 10_000
TRACEBACK_CHARS_MAX: Final = 100_000
RESULT_BYTES_MAX: Final = 1024 * 1024

_CUT: Final = "[...]"


class OutcomeKind(enum.IntEnum):
    """The numbers of adjourn.v1.Outcome, for children, which do without protobuf."""

    SUCCEEDED = 1
    RETRY = 2
    FAILED = 3
    RELEASED = 4
    CRASHED = 5


class Outcome(NamedTuple):
    """The end of one attempt. A tuple of plain values, so that a frame can carry it."""

    kind: int
    result: bytes = b""
    error_type: str = ""
    error_message: str = ""
    error_traceback: str = ""


SUCCEEDED: Final = Outcome(int(OutcomeKind.SUCCEEDED))
"""Success with nothing to send: by far the most frequent outcome, told apart by identity."""

RELEASED: Final = Outcome(int(OutcomeKind.RELEASED))
"""Given back: the attempt does not count."""


def ended_with_error(kind: OutcomeKind, error_type: str, message: str, trace: str = "") -> Outcome:
    """Return the outcome of a failed attempt, its texts fit for the wire: valid UTF-8 and within bounds.

    Of a traceback the end is kept, where the error is; of the other texts the beginning.
    """
    trace = _encodable(trace)
    if len(trace) > TRACEBACK_CHARS_MAX:
        trace = _CUT + trace[len(_CUT) - TRACEBACK_CHARS_MAX :]
    return Outcome(int(kind), b"", _head(error_type, TYPE_CHARS_MAX), _head(message, MESSAGE_CHARS_MAX), trace)


def raised(kind: OutcomeKind, error: BaseException, *, reason: str = "") -> Outcome:
    """Return the outcome of an attempt that raised `error`. Never raises, whatever the error's `__str__` does.

    `reason` goes before the error's own message.
    """
    message = _text_of(error)
    return ended_with_error(
        kind,
        dotted_name(type(error)),
        f"{reason}: {message}" if reason and message else reason or message,
        _traceback_of(error),
    )


def dotted_name(cls: type) -> str:
    """Return where a class is to be found: `package.module.Outer.Inner`, or its bare name if it is a builtin."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _head(text: str, most: int) -> str:
    text = _encodable(text)
    return text if len(text) <= most else text[: most - len(_CUT)] + _CUT


def _encodable(text: str) -> str:
    # A lone surrogate (a file name with undecodable bytes, say) would make protobuf refuse the whole message.
    return text.encode("utf-8", "backslashreplace").decode()


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - user code; what it raises must not hide the error itself.
        return f"<str() of the exception raised {dotted_name(type(broken))}>"


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception as broken:  # noqa: BLE001 - user code, as above.
        return f"<the traceback could not be formatted: {dotted_name(type(broken))}>"
