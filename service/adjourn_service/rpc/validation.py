"""Checks requests against the rules that the proto files declare."""

from collections.abc import Mapping
from typing import Any

import protovalidate
from google.protobuf.message import Message

from adjourn_service.errors import InvalidField


def validate(message: Message) -> None:
    """Check a message against the rules of its fields. Raises: InvalidField, with every violation."""
    violations = protovalidate.collect_violations(message)
    if violations:
        raise InvalidField({_path(violation.proto.field): violation.proto.message for violation in violations})


def violations_by_item(message: Message, field: str) -> Mapping[int, InvalidField]:
    """Check a message whose repeated `field` holds items that stand for themselves.

    Returns the violations of each item by its index. Raises: InvalidField for those of the message itself."""
    items: dict[int, dict[str, str]] = {}
    ours: dict[str, str] = {}
    for violation in protovalidate.collect_violations(message):
        path = violation.proto.field
        first = path.elements[0] if path is not None and path.elements else None
        if first is not None and first.field_name == field and first.subscript is not None:
            items.setdefault(int(first.subscript.value), {})[_path(path)] = violation.proto.message
        else:
            ours[_path(path)] = violation.proto.message
    if ours:
        raise InvalidField(ours)
    return {index: InvalidField(violations) for index, violations in items.items()}


def _path(path: Any) -> str:
    """Return a path as a caller would write it: `requests[3].task.headers["x"]`."""
    parts = []
    for element in path.elements if path is not None else ():
        subscript = element.subscript
        if subscript is None:
            parts.append(element.field_name)
        elif isinstance(subscript.value, str):
            parts.append(f'{element.field_name}["{subscript.value}"]')
        else:
            parts.append(f"{element.field_name}[{subscript.value}]")
    return ".".join(parts) or "message"
