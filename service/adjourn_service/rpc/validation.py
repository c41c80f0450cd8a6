"""Checks requests against the rules that the proto files declare, and what those cannot say: that times are times."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from adjourn.v1.queue_pb2 import RetryPolicy
from adjourn.v1.task_pb2 import Task
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


# --- the usual options of a create

Fields: TypeAlias = "Sequence[tuple[FieldDescriptor, Any]]"
"""What a message's ListFields gives."""

_DAY_SECONDS: Final = 86_400
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")


def plainly_valid(fields: Fields) -> bool:
    """Say whether these fields of a Task surely keep to their rules, at a tenth of what protovalidate takes to say it.

    False means no more than that protovalidate has to be asked. A test compares the two."""
    return _all_plain(fields, _PLAIN_TASK)


def _all_plain(fields: Fields, rules: Mapping[int, Callable[[Any], bool]]) -> bool:
    for field, value in fields:
        rule = rules.get(field.number)
        if rule is None or not rule(value):
            return False
    return True


def _text(value: str) -> bool:
    return len(value) <= 500


def _between(least: int, most: int) -> Callable[[int], bool]:
    return lambda value: least <= value <= most


def _span(least_seconds: int, most_seconds: int) -> Callable[[Duration], bool]:
    return lambda value: least_seconds <= value.seconds < most_seconds and 0 <= value.nanos <= _NANOS_MAX


def _headers(value: Mapping[str, str]) -> bool:
    return len(value) <= 64 and all(_HEADER_NAME.fullmatch(name) and len(value[name]) <= 2000 for name in value)


def _retry_policy(value: RetryPolicy) -> bool:
    # The order of the two back-offs is for protovalidate to judge.
    ordered = not (value.HasField("min_backoff") and value.HasField("max_backoff"))
    return ordered and _all_plain(value.ListFields(), _PLAIN_RETRY_POLICY)


_PLAIN_RETRY_POLICY: Final[Mapping[int, Callable[[Any], bool]]] = {
    RetryPolicy.MAX_ATTEMPTS_FIELD_NUMBER: _between(0, 1_000_000),
    RetryPolicy.MAX_AGE_FIELD_NUMBER: _span(0, 365 * _DAY_SECONDS),
    RetryPolicy.MIN_BACKOFF_FIELD_NUMBER: _span(0, 30 * _DAY_SECONDS),
    RetryPolicy.MAX_BACKOFF_FIELD_NUMBER: _span(0, 30 * _DAY_SECONDS),
    RetryPolicy.MAX_DOUBLINGS_FIELD_NUMBER: _between(0, 1000),
    RetryPolicy.STOP_FIELD_NUMBER: _between(0, 2),
    RetryPolicy.JITTER_FIELD_NUMBER: _between(0, 1),
}

_PLAIN_TASK: Final[Mapping[int, Callable[[Any], bool]]] = {
    Task.PAYLOAD_FIELD_NUMBER: lambda value: len(value) <= 1 << 20,
    Task.CALLABLE_FIELD_NUMBER: _text,
    Task.HEADERS_FIELD_NUMBER: _headers,
    Task.COUNTDOWN_FIELD_NUMBER: _span(0, 366 * _DAY_SECONDS),
    Task.PRIORITY_FIELD_NUMBER: _between(-1000, 1000),
    Task.TAG_FIELD_NUMBER: _text,
    Task.KEY_FIELD_NUMBER: _text,
    Task.DEADLINE_FIELD_NUMBER: _span(1, 30 * _DAY_SECONDS),
    Task.RETRY_POLICY_FIELD_NUMBER: _retry_policy,
    Task.RETAIN_FIELD_NUMBER: _span(0, 30 * _DAY_SECONDS),
}


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
