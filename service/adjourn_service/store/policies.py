"""Queue and retry policies as JSON, for stores that keep them in a column.

Fields that are unknown are dropped and fields that are missing take their default, so that the releases before and
after this one can read what it writes.
"""

import json
from dataclasses import asdict, fields
from typing import Any

from adjourn_service.model import QueuePolicy, RateLimits, RetryPolicy, StopRule


def _known(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in values.items() if name in names}


def _retry_from(values: dict[str, Any]) -> RetryPolicy:
    known = _known(RetryPolicy, values)
    if "stop" in known:
        known["stop"] = StopRule(known["stop"])
    return RetryPolicy(**known)


def dump_retry(policy: RetryPolicy) -> str:
    """Return the policy as JSON."""
    return json.dumps(asdict(policy))


def load_retry(text: str) -> RetryPolicy:
    """Return the policy that dump_retry wrote."""
    return _retry_from(json.loads(text))


def dump_queue_policy(policy: QueuePolicy) -> str:
    """Return the policy as JSON."""
    return json.dumps(asdict(policy))


def load_queue_policy(text: str) -> QueuePolicy:
    """Return the policy that dump_queue_policy wrote."""
    values = _known(QueuePolicy, json.loads(text))
    if "retry" in values:
        values["retry"] = _retry_from(values["retry"])
    if "rate_limits" in values:
        values["rate_limits"] = RateLimits(**_known(RateLimits, values["rate_limits"]))
    return QueuePolicy(**values)
