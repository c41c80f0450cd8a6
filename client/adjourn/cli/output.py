"""How commands print: tables and fields for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

NOTHING: Final = "-"
"""In the place of a value that is not set, so that columns can be counted."""

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def as_dict(message: Message, *, with_zeros: bool = False) -> dict[str, Any]:
    """Return a message in protobuf's JSON form with the names of the proto; `with_zeros` keeps counters that are 0."""
    from google.protobuf import json_format

    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=with_zeros
    )


def print_json(value: dict[str, Any]) -> None:
    """Print one object over many lines."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_line(value: dict[str, Any]) -> None:
    """Print one object on a line of its own."""
    click.echo(json.dumps(value, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their headings: a drawn table on a terminal, columns two spaces apart elsewhere."""
    cells = [[cell or NOTHING for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw_table(columns, cells)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in (columns, *cells):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _draw_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values, a pair a line; values that are not set are left out."""
    pairs = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{name.ljust(width)}  {value}")


def moment(timestamp: Timestamp) -> str:
    """Return a moment in UTC to the millisecond, as in `2026-11-23 08:00:00.125Z`; empty if it is unset."""
    if not (timestamp.seconds or timestamp.nanos):
        return ""
    at = datetime.fromtimestamp(timestamp.seconds, UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}.{timestamp.nanos // 1_000_000:03}Z"


def duration(value: Duration) -> str:
    """Return a duration as it is given to options, in the units that leave no rest: `90s`, `1h30m`, `0.1s`."""
    left, parts = value.seconds, []
    for unit, seconds in _UNITS[:-1]:
        count, left = divmod(left, seconds)
        if count:
            parts.append(f"{count}{unit}")
    rest = left + value.nanos / 1e9
    if rest or not parts:
        parts.append(f"{rest:g}s")
    return "".join(parts)


def word(enum_name: str, prefix: str) -> str:
    """Return the value of a prefixed enum for people: `dead` for TASK_STATE_DEAD."""
    return enum_name.removeprefix(prefix).lower()
