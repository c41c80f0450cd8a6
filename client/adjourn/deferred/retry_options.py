"""App Engine's `taskqueue.TaskRetryOptions`."""

from __future__ import annotations

import math
from typing import Final

from adjourn.errors import OptionError
from adjourn.options import Retry

_FIELDS: Final = (
    "max_backoff_seconds",
    "max_doublings",
    "min_backoff_seconds",
    "task_age_limit",
    "task_retry_limit",
)


class TaskRetryOptions:
    """Options for `_retry_options`. All default to None, which leaves App Engine's defaults: back-off from 0.1 s to
    1 h, 16 doublings, no limits. A limit of N retries is N + 1 attempts; with both limits the task is given up when
    both are spent.

    Raises: OptionError for an unknown option (it is a TypeError), a negative value or max below min back-off (it is a
    ValueError)."""

    def __init__(self, **options: float | None) -> None:
        for name, value in options.items():
            if name not in _FIELDS:
                raise OptionError(f"TaskRetryOptions has no option {name!r}; the options are {', '.join(_FIELDS)}")
            if value is not None and not value >= 0:
                raise OptionError(f"{name} must not be negative, and is {value}")
        self._options = options
        self.to_retry()

    @property
    def min_backoff_seconds(self) -> float | None:
        """Seconds before the first retry."""
        return self._options.get("min_backoff_seconds")

    @property
    def max_backoff_seconds(self) -> float | None:
        """Longest wait, in seconds."""
        return self._options.get("max_backoff_seconds")

    @property
    def task_age_limit(self) -> int | None:
        """Seconds from the first attempt after which there is no retry, rounded up."""
        age = self._options.get("task_age_limit")
        return None if age is None else math.ceil(age)

    @property
    def max_doublings(self) -> int | None:
        """How often the wait doubles."""
        return self._whole("max_doublings")

    @property
    def task_retry_limit(self) -> int | None:
        """How many retries follow the first attempt."""
        return self._whole("task_retry_limit")

    def to_retry(self) -> Retry:
        """Return the same policy as a Retry.

        Raises: OptionError."""
        return Retry.from_appengine(self)

    def _whole(self, name: str) -> int | None:
        value = self._options.get(name)
        if value is not None and value != int(value):
            raise OptionError(f"{name} must be a whole number, and is {value}")
        return None if value is None else int(value)

    def __repr__(self) -> str:
        return f"TaskRetryOptions({', '.join(f'{name}={value}' for name, value in sorted(self._options.items()))})"
