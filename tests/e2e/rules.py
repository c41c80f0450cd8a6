"""Walks the field rules that the proto files declare: a request for every way in which each of them can be broken.

The rules are not read but met: of the values that a field is tried with, protovalidate says which break a rule."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import protovalidate
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

from adjourn.v1 import lease_service_pb2, queue_service_pb2, task_service_pb2

SERVICES = [
    queue_service_pb2.DESCRIPTOR.services_by_name["Queues"],
    task_service_pb2.DESCRIPTOR.services_by_name["Tasks"],
    lease_service_pb2.DESCRIPTOR.services_by_name["Leases"],
]

QUEUE = "queues/default"
TASK = "queues/default/tasks/t"
UID = "018bcfe5-6800-7000-8000-000000000001"

# What a message needs to be valid, by the last part of its name.
VALID: dict[str, dict[str, Any]] = {
    "CreateTaskRequest": {"task": {"priority": 1}, "request_id": UID},
    "BatchCreateTasksRequest": {"requests": [{"task": {"priority": 1}, "request_id": UID}]},
    "ListTasksRequest": {"parent": QUEUE},
    "Queue": {"name": "queues/q"},
    "CreateQueueRequest": {"queue": {"name": "queues/q"}},
    "UpdateQueueRequest": {"queue": {"name": QUEUE}},
    "QueueSelector": {"queue": QUEUE},
    "LeaseRequest": {"queues": [{"queue": QUEUE}], "max_leases": 1, "worker_id": "w"},
    "RenewRequest": {"lease_ids": ["x"]},
    "SettleRequest": {"settlements": [{"lease_id": "x", "outcome": 1}]},
    "Settlement": {"lease_id": "x", "outcome": 1},
    "WorkerHello": {"worker_id": "w", "queues": [{"queue": QUEUE}]},
    **{f"{verb}QueueRequest": {"name": QUEUE} for verb in ("Get", "Delete", "Pause", "Resume", "Purge")},
    "GetQueueStatsRequest": {"name": QUEUE},
    **{f"{verb}TaskRequest": {"name": TASK} for verb in ("Get", "Cancel", "Delete", "Run", "Retry", "Wait")},
}

NUMBERS = [-1, 0, -1001, 1001, 10_001, 1_000_001]
REALS = [-1.0, 0.0, 1.5, 1e7, float("nan"), float("inf")]
TEXTS = ["", "\n", "no such form", *["x" * (length + 1) for length in (100, 200, 500, 1000, 2000, 10_000, 100_000)]]
SECONDS = [-1, 0, 61, 43_201, 777_601, 2_592_001, 31_536_001, 31_622_401]
COUNTS = [0, 101, 1001, 10_001, 100_001]


@dataclass(frozen=True)
class Case:
    """A request that breaks one rule."""

    service: str
    method: str
    path: str
    said: str
    request: Any


_CLASSES: dict[str, Any] = {
    f"adjourn.v1.{name}": getattr(module, name)
    for module in (queue_service_pb2, task_service_pb2, lease_service_pb2)
    for name in module.DESCRIPTOR.message_types_by_name
}


def cases(service: str, method: str) -> Iterator[Case]:
    """Yield a request for every way to break a rule of this call."""
    (called,) = (each.methods_by_name[method] for each in SERVICES if each.name == service)
    message = _CLASSES[called.input_type.full_name](**VALID.get(called.input_type.name, {}))
    assert not protovalidate.collect_violations(message), message
    for path, broken, said in _broken(message, message, ""):
        yield Case(service, method, path, said, broken)


def _broken(root: Message, here: Message, prefix: str) -> Iterator[tuple[str, Message, str]]:
    """Yield copies of `root` with one rule broken in or under `here`, which is part of it."""
    for field in here.DESCRIPTOR.fields:
        path = prefix + field.name
        before = copy.copy(here)
        found = set()
        for value in _values(field):
            _set(here, field, value)
            violations = protovalidate.collect_violations(root)
            paths = {violation.proto.field.elements[-1].field_name for violation in violations}
            if violations and paths <= {field.name}:
                said = violations[0].proto.message
                found.add(said)
                yield path, copy.deepcopy(root), f"{said} {_brief(value)}"
            here.CopyFrom(before)
        assert found or not is_ruled(field), f"no value that breaks the rule of {here.DESCRIPTOR.name}.{field.name}"
        inner = field.message_type
        if inner is None or inner.file.package != "adjourn.v1" or inner.GetOptions().map_entry:
            continue
        valid = VALID.get(inner.name, {})
        if field.is_repeated:
            if not len(getattr(here, field.name)):
                getattr(here, field.name).add(**valid)
            child, path = getattr(here, field.name)[0], f"{path}[0]"
        else:
            child = getattr(here, field.name)
            child.MergeFrom(type(child)(**valid))
            child.SetInParent()
        if not protovalidate.collect_violations(root):
            yield from _broken(root, child, f"{path}.")
        here.CopyFrom(before)


def is_ruled(field: Field) -> bool:
    """Say whether the field has rules: field 1159 of its options, which is buf.validate.field."""
    return b"\xbaH" in field.GetOptions().SerializeToString()


def _values(field: Field) -> list[Any]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return [{str(number): "" for number in range(65)}, {"": "x"}, {"a b": "x"}, {"x" * 101: ""}, {"a": "x" * 2001}]
    if field.is_repeated:
        item = VALID.get(kind.name, {}) if kind is not None else "x"
        return [[item] * count for count in COUNTS]
    if kind is not None:
        if kind.name == "Duration":
            return [{"seconds": seconds} for seconds in SECONDS]
        return [None]
    if field.cpp_type == Field.CPPTYPE_STRING:
        return [bytes((1 << 20) + 1)] if field.type == Field.TYPE_BYTES else TEXTS
    if field.cpp_type == Field.CPPTYPE_DOUBLE:
        return REALS
    if field.cpp_type == Field.CPPTYPE_ENUM:
        return [0, 99]
    return NUMBERS if field.cpp_type == Field.CPPTYPE_INT32 else []


def _set(message: Message, field: Field, value: Any) -> None:
    message.ClearField(field.name)
    if value is not None:
        message.MergeFrom(type(message)(**{field.name: value}))


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 30 else f"of {len(value)}"
