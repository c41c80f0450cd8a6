"""The policy of a queue as options: one table from which the options, the messages and the listing come."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from adjourn.cli.output import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from google.protobuf.message import Message

    from adjourn.v1.queue_pb2 import Queue

F = TypeVar("F", bound="Callable[..., Any]")

DEFAULT: Final = "default"
"""What resets a field."""

_SECONDS_MAX: Final = 315_576_000_000
"""Ten thousand years: what google.protobuf.Duration can hold. The service's bounds are narrower."""

_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_MILLISECONDS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_duration(text: str) -> float:
    """Return the seconds in `30s`, `1h30m`, `500ms` or `0`.

    >>> [parse_duration(text) for text in ("0", "500ms", "1h30m", "2d")]
    [0.0, 0.5, 5400.0, 172800.0]

    Raises: ValueError."""
    if text == "0":
        return 0.0
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write 500ms, 30s, 5m, 2h, 1d or a sum such as 1h30m")
    seconds = sum(float(number) * _MILLISECONDS[unit] for number, unit in parts) / 1_000
    if seconds > _SECONDS_MAX:
        raise ValueError(f"{text[:20]}{'...' * (len(text) > 20)} is longer than any duration may be")
    return seconds


class _Kind(NamedTuple):
    """How the text of an option becomes a value. `DEFAULT` stays as it is."""

    name: str
    read: Callable[[str], object]

    # Not a click.ParamType: it is generic in some of the releases that will do, and cannot be subclassed in all alike.
    def convert(self, _ctx: click.Context, _parameter: click.Parameter, text: str | None) -> object:
        """As a callback of click. Raises: click.BadParameter."""
        if text is None or text == DEFAULT:
            return text
        try:
            return self.read(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error


def _stop_rule(text: str) -> str:
    if text.lower() not in ("any", "all"):
        raise ValueError(f"{text!r} is neither 'any' nor 'all'")
    return f"STOP_RULE_{text.upper()}"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a whole number") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a number") from error


_DURATION: Final = _Kind("DURATION", parse_duration)
_WHOLE: Final = _Kind("N", _whole)
_NUMBER: Final = _Kind("NUMBER", _number)
_STOP: Final = _Kind("any|all", _stop_rule)


class _Field(NamedTuple):
    """One field of a queue's policy."""

    path: str
    """As in a field mask."""
    option: str
    kind: _Kind
    text: str


# The bounds are the service's to check: it says what is wrong, and a newer service may allow more.
_FIELDS: Final = (
    _Field("retry_policy.max_attempts", "--max-attempts", _WHOLE, "Attempts a task may have; 0: no limit. [100]"),
    _Field("retry_policy.max_age", "--max-age", _DURATION, "No retry this long after the first attempt. [no limit]"),
    _Field("retry_policy.min_backoff", "--min-backoff", _DURATION, "Wait before the first retry. [100ms]"),
    _Field("retry_policy.max_backoff", "--max-backoff", _DURATION, "Longest wait before a retry. [1h]"),
    _Field("retry_policy.max_doublings", "--max-doublings", _WHOLE, "How often the wait doubles. [16]"),
    _Field("retry_policy.stop", "--stop", _STOP, "Give up when any limit is spent, or only when all are. [any]"),
    _Field("retry_policy.jitter", "--jitter", _NUMBER, "Random share taken off each wait, 0 to 1. [0]"),
    _Field("rate_limits.max_leases_per_second", "--rate", _NUMBER, "Tasks started a second. [no limit]"),
    _Field("rate_limits.max_burst_size", "--burst", _WHOLE, "Tasks started at once after a rest. [the rate]"),
    _Field("rate_limits.max_concurrent_leases", "--concurrency", _WHOLE, "Tasks running at a time. [no limit]"),
    _Field("lease_duration", "--lease-duration", _DURATION, "After this, a dead worker's tasks run again. [30s]"),
    _Field("task_deadline", "--task-deadline", _DURATION, "Longest run of one attempt. [no limit]"),
    _Field("result_retention", "--result-retention", _DURATION, "Keep succeeded tasks this long. [0]"),
    _Field("dead_letter_retention", "--dead-letter-retention", _DURATION, "Keep dead letters this long. [14d]"),
    _Field("tombstone_ttl", "--tombstone-ttl", _DURATION, "Keep the names of ended tasks taken this long. [1h]"),
)


def policy_options(function: F) -> F:
    """Add an option for every field of a queue's policy; the function gets those given in `policy`."""
    for field in reversed(_FIELDS):
        option = click.option(
            field.option, _parameter(field), callback=field.kind.convert, metavar=field.kind.name, help=field.text
        )
        function = option(function)
    return function


def apply_policy(queue: Queue, values: Mapping[str, Any]) -> list[str]:
    """Put the values of options into a queue. Return the paths of the fields that were given, for a field mask."""
    from google.protobuf.duration_pb2 import Duration

    from adjourn.v1.queue_pb2 import StopRule

    paths = []
    for field in _FIELDS:
        value = values[_parameter(field)]
        if value is None:
            continue
        paths.append(field.path)
        if value == DEFAULT:
            continue
        message, name = _parent(queue, field)
        if field.kind is _DURATION:
            micros = round(value * 1_000_000)
            whole = Duration(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1_000)
            getattr(message, name).CopyFrom(whole)
        elif field.kind is _STOP:
            setattr(message, name, StopRule.Value(value))
        else:
            try:
                setattr(message, name, value)
            except (ValueError, OverflowError) as error:
                raise click.BadParameter(f"{value} is far out of its bounds", param_hint=field.option) from error
    return paths


def policy_fields(queue: Queue) -> Iterator[tuple[str, str]]:
    """Yield each field of a queue's policy that is set, named as its option, with its value as it is given."""
    from adjourn.v1.queue_pb2 import StopRule

    for field in _FIELDS:
        message, name = _parent(queue, field)
        value = getattr(message, name)
        label = field.option.removeprefix("--")
        if field.kind is _STOP:
            yield label, "all" if value == StopRule.STOP_RULE_ALL else "any"
        elif field.kind is _DURATION:
            yield label, duration(value) if message.HasField(name) else ""
        elif not message.DESCRIPTOR.fields_by_name[name].has_presence or message.HasField(name):
            yield label, f"{value:g}"


def _parameter(field: _Field) -> str:
    return field.option.removeprefix("--").replace("-", "_")


def _parent(queue: Queue, field: _Field) -> tuple[Message, str]:
    """Return the message that holds a field and the field's name in it."""
    outer, _, inner = field.path.rpartition(".")
    return (getattr(queue, outer) if outer else queue), inner
