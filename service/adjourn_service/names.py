"""The grammar of resource names and of task uids."""

import re

QUEUE_ID = re.compile(r"[A-Za-z0-9-]{1,100}")
_TASK_NAME = re.compile(r"queues/([A-Za-z0-9-]{1,100})/tasks/([A-Za-z0-9_-]{1,500})")
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

ANY_QUEUE = "-"
"""Stands for all queues in `queues/-`."""


def queue_name(queue: str) -> str:
    """Return the resource name of the queue with this id."""
    return f"queues/{queue}"


def parse_queue_name(name: str) -> str:
    """Return the id in `queues/{id}`; `queues/-` gives "-". Raises: ValueError if it is not such a name."""
    prefix, _, queue = name.partition("/")
    if prefix != "queues" or not (queue == ANY_QUEUE or QUEUE_ID.fullmatch(queue)):
        raise ValueError(f"{name!r} is not a queue name of the form queues/ID")
    return queue


def task_name(queue: str, name: str | None, uid: bytes) -> str:
    """Return the resource name of a task: by its own name, or by its uid if it has none."""
    return f"queues/{queue}/tasks/{name or format_uid(uid)}"


def parse_task_name(name: str) -> tuple[str, str]:
    """Return queue id and task id of `queues/{queue}/tasks/{task}`. Raises: ValueError if it is not such a name."""
    match = _TASK_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a task name of the form queues/QUEUE/tasks/TASK")
    return match[1], match[2]


def format_uid(uid: bytes) -> str:
    """Return the canonical text of a 16-byte uid."""
    text = uid.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_uid(text: str) -> bytes | None:
    """Return the 16 bytes of a UUIDv7 in canonical lower-case form, or None if it is not one."""
    if _UID.fullmatch(text) is None:
        return None
    return bytes.fromhex(text.replace("-", ""))


def uid_time_us(uid: bytes) -> int:
    """Return the moment inside a UUIDv7, in microseconds since the epoch (RFC 9562, section 5.7: 48 bits of ms)."""
    return int.from_bytes(uid[:6], "big") * 1000


def uid_floor(at_us: int) -> bytes:
    """Return the smallest 16 bytes that a uid of this moment, or of a later one, can have."""
    return max(0, at_us // 1000).to_bytes(6, "big") + bytes(10)
