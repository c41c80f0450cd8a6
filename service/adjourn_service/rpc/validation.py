"""Checks requests against the rules that the proto files declare, and what those cannot say: that times are times."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

import protovalidate
from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from adjourn_service.errors import InvalidField

_TIMESTAMP_SECONDS: Final = (-62_135_596_800, 253_402_300_799)
"""Years 1 to 9999, as google/protobuf/timestamp.proto says."""

_DURATION_SECONDS_MAX: Final = 315_576_000_000
"""Some 10,000 years, as google/protobuf/duration.proto says."""

_NANOS_MAX: Final = 999_999_999


def validate(message: Message, path: str = "") -> None:
    """Check a message against the rules of its fields. `path` stands before theirs in what is said of them.

    Raises: InvalidField, with every violation."""
    # Times go first: protovalidate accepts nanos out of their range, and fails on seconds out of theirs.
    violations = {f"{path}{field}": problem for field, problem in _bad_times(message, _timed(message.DESCRIPTOR), "")}
    if not violations:
        for violation in protovalidate.collect_violations(message):
            field = f"{path}{_path(violation.proto.field)}".rstrip(".") or "message"
            violations[field] = violation.proto.message
    if violations:
        raise InvalidField(violations)


def _path(path: Any) -> str:
    """Return a path as a caller would write it, `task.headers["x"]`; it is ASCII whatever the caller sent."""
    parts = []
    for element in path.elements if path is not None else ():
        subscript = element.subscript
        index = "" if subscript is None else f"[{json.dumps(subscript.value)}]"
        parts.append(f"{element.field_name}{index}")
    return ".".join(parts)


# --- times


class _Timed(NamedTuple):
    """A field that holds times; `inner` are those of its message, if it is not a time itself."""

    name: str
    repeated: bool
    inner: "tuple[_Timed, ...]"


@cache
def _timed(descriptor: Descriptor) -> tuple[_Timed, ...]:
    """Return the fields of a message under which there are times: few, so that looking for them costs little."""
    found = []
    for field in descriptor.fields:
        kind = field.message_type
        if kind is None or kind.GetOptions().map_entry:
            continue
        if kind.full_name in (Duration.DESCRIPTOR.full_name, Timestamp.DESCRIPTOR.full_name):
            found.append(_Timed(field.name, field.is_repeated, ()))
        elif inner := _timed(kind):
            found.append(_Timed(field.name, field.is_repeated, inner))
    return tuple(found)


def _bad_times(message: Any, timed: tuple[_Timed, ...], path: str) -> Iterator[tuple[str, str]]:
    for field in timed:
        if field.repeated:
            for index, item in enumerate(getattr(message, field.name)):
                yield from _bad_times(item, field.inner, f"{path}{field.name}[{index}].")
        elif message.HasField(field.name):
            value = getattr(message, field.name)
            if field.inner:
                yield from _bad_times(value, field.inner, f"{path}{field.name}.")
            elif isinstance(value, Duration):
                if not _is_duration(value):
                    yield f"{path}{field.name}", "is not a valid duration"
            elif not _is_timestamp(value):
                yield f"{path}{field.name}", "is not a valid timestamp"


def _is_duration(value: Duration) -> bool:
    seconds, nanos = value.seconds, value.nanos
    same_sign = seconds * nanos >= 0
    return same_sign and abs(seconds) <= _DURATION_SECONDS_MAX and abs(nanos) <= _NANOS_MAX


def _is_timestamp(value: Timestamp) -> bool:
    first, last = _TIMESTAMP_SECONDS
    return first <= value.seconds <= last and 0 <= value.nanos <= _NANOS_MAX
