"""Messages between the worker's main process and a child: plain tuples, marshalled, behind their length.

Both ends are the same interpreter, so marshal's format is common to them; it costs a third of pickle and makes no
objects but those of the language. The first item of a message is its kind:

| from the main process | |
|---|---|
| `(TASKS, [task, ...])` | run these, in this order, after those given before; a task is a `TaskFrame` |
| `(RECALL,)` | give back whatever has not been started |

| from the child | |
|---|---|
| `(READY,)` | the user's modules are imported |
| `(BROKEN, reason)` | they could not be; the child exits |
| `(ENDED, ended, busy_seconds, outcome)` | the first `ended` tasks of this child have ended, see below |
| `(RETURNED, [lease_id, ...])` | the answer to RECALL; the child forgets them |

Of the tasks that ended since the report before, the last one ended with `outcome` unless that is None; all others
succeeded and have nothing to send. `busy_seconds` is the time worked since the report before.
"""

from __future__ import annotations

import marshal
import struct
from typing import Any, Final, TypeAlias

TASKS: Final = 1
RECALL: Final = 2
READY: Final = 3
BROKEN: Final = 4
ENDED: Final = 5
RETURNED: Final = 6

TaskFrame: TypeAlias = tuple[str, str, int, bytes, bool, dict[str, str] | None, str, str, str, str]
"""What a child learns of a task: lease_id, name, attempt, payload, keep_result, headers, uid, callable, tag, key."""

_LENGTH = struct.Struct("!I")


def encode(message: tuple[Any, ...]) -> bytes:
    """Return `message` as one frame. It may hold None, bool, int, float, str, bytes; list, tuple and dict of them."""
    body = marshal.dumps(message)
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Cuts a stream of bytes into messages; keeps the beginning of an unfinished one.

    >>> decoder = FrameDecoder()
    >>> frame = encode((RECALL,))
    >>> decoder.feed(frame[:3]), decoder.feed(frame[3:] + frame)
    ([], [(2,), (2,)])
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[tuple[Any, ...]]:
        """Return the messages that `data` completes."""
        self._rest += data
        messages: list[tuple[Any, ...]] = []
        position, end = 0, len(self._rest)
        with memoryview(self._rest) as view:
            while end - position >= _LENGTH.size:
                start = position + _LENGTH.size
                (length,) = _LENGTH.unpack_from(view, position)
                if end - start < length:
                    break
                position = start + length
                messages.append(marshal.loads(view[start:position]))
        del self._rest[:position]
        return messages
