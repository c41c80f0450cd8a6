"""What may be said about a task besides its call: when, where, how often.

Values are checked here, before anything is sent. The bounds are those of `adjourn/v1/task.proto` and `queue.proto`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, TypedDict

from adjourn.errors import NotYetError, OptionError

Seconds: TypeAlias = float | timedelta

QUEUE_ID: Final = re.compile(r"[A-Za-z0-9-]{1,100}")
TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,500}")
HEADER_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")

HEADERS_MAX: Final = 64
HEADER_VALUE_CHARACTERS_MAX: Final = 2_000
LABEL_CHARACTERS_MAX: Final = 500
PRIORITY_MAX: Final = 1_000
COUNTDOWN_SECONDS_MAX: Final = 366 * 86_400.0
DEADLINE_SECONDS_MAX: Final = 30 * 86_400.0
RETAIN_SECONDS_MAX: Final = 30 * 86_400.0
BACKOFF_SECONDS_MAX: Final = 30 * 86_400.0
AGE_SECONDS_MAX: Final = 365 * 86_400.0
ATTEMPTS_MAX: Final = 1_000_000
DOUBLINGS_MAX: Final = 1_000

# Where App Engine's deferred sends its tasks unless told otherwise: the one `_url` that means the same here.
APPENGINE_DEFERRED_URL: Final = "/_ah/queue/deferred"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a failed attempt is followed by another. Replaces the queue's policy as a whole.

    The wait before retry n is `min(max_backoff, min_backoff * 2**e * max(1, n - e))`, `e = min(n - 1, max_doublings)`.
    Durations are seconds or timedeltas; None takes the default.

    Raises: OptionError."""

    max_attempts: int | None = None
    """Most attempts, the first included. Default 100; 0: unlimited. At most 1,000,000."""
    max_age: Seconds | None = None
    """No retry once this much time has passed since the first attempt. Default, 0: unlimited. At most 365 days."""
    min_backoff: Seconds | None = None
    """Wait before the first retry. Default 0.1 s. At most 30 days."""
    max_backoff: Seconds | None = None
    """Longest wait. Default 1 h, or min_backoff if that is more. At most 30 days."""
    max_doublings: int | None = None
    """How often the wait doubles before it grows linearly. Default 16. At most 1,000."""
    stop: Literal["any", "all"] = "any"
    """Give up when either of max_attempts and max_age is spent, or (App Engine's rule) only when both are."""
    jitter: float = 0.0
    """Random share of the wait that is taken off it, 0 to 1."""

    def __post_init__(self) -> None:
        _check_whole("max_attempts", self.max_attempts, 0, ATTEMPTS_MAX)
        _check_whole("max_doublings", self.max_doublings, 0, DOUBLINGS_MAX)
        for name, limit in (
            ("max_age", AGE_SECONDS_MAX),
            ("min_backoff", BACKOFF_SECONDS_MAX),
            ("max_backoff", BACKOFF_SECONDS_MAX),
        ):
            object.__setattr__(self, name, _duration(name, getattr(self, name), 0, limit))
        if self.min_backoff is not None and self.max_backoff is not None and self.max_backoff < self.min_backoff:  # type: ignore[operator]
            raise OptionError(
                f"max_backoff ({self.max_backoff} s) must not be less than min_backoff ({self.min_backoff} s)"
            )
        if self.stop not in ("any", "all"):
            raise OptionError(f"stop must be 'any' or 'all', not {self.stop!r}")
        object.__setattr__(self, "jitter", _number("jitter", self.jitter))
        if not 0 <= self.jitter <= 1:
            raise OptionError(f"jitter must be from 0 to 1, not {self.jitter}")

    @classmethod
    def from_appengine(cls, options: Any) -> Retry:
        """Read App Engine's `TaskRetryOptions`, or what has its attributes: a limit of N retries is N + 1 attempts,
        no limit is none, and with both limits the task is given up only when both are spent.

        Raises: OptionError."""
        limit = getattr(options, "task_retry_limit", None)
        return cls(
            max_attempts=0 if limit is None else limit + 1,
            max_age=getattr(options, "task_age_limit", None),
            min_backoff=getattr(options, "min_backoff_seconds", None),
            max_backoff=getattr(options, "max_backoff_seconds", None),
            max_doublings=getattr(options, "max_doublings", None),
            stop="all",
        )


_APPENGINE_RETRY_FIELDS: Final = (
    "min_backoff_seconds",
    "max_backoff_seconds",
    "task_age_limit",
    "max_doublings",
    "task_retry_limit",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Options of one task. Durations are seconds or timedeltas and are kept as seconds; None leaves it to the queue.

    Raises: OptionError that names the option, its value and its bounds."""

    countdown: Seconds | str | None = None
    """Wait from the moment the service has the task, at most 366 days. Negative: none. Excludes eta."""
    eta: datetime | None = None
    """Earliest start. Without a time zone it is local time. In the past: at once. At most 366 days ahead."""
    name: str | None = None
    """Unique in its queue, also for a while after the task is gone. 1 to 500 characters of A-Z a-z 0-9 _ -."""
    queue: str | None = None
    """Queue, by its id. None: the configured one, which is `default` by default."""
    retry: Retry | None = None
    """Replaces the queue's retry policy. App Engine's TaskRetryOptions are read as well."""
    headers: Mapping[str, str] | None = None
    """Text that travels along. At most 64; names of 1 to 100 characters of A-Z a-z 0-9 . _ -, values of up to 2,000."""
    priority: int = 0
    """Higher runs first among the ready tasks of the queue. -1000 to 1000."""
    tag: str | None = None
    """A label to lease, list and cancel by. At most 500 characters."""
    key: str | None = None
    """What the task is about: a second label. At most 500 characters."""
    deadline: Seconds | None = None
    """Longest run of one attempt. 1 s to 30 days."""
    retain: Seconds | None = None
    """How long the succeeded task and its result are kept, for `handle.result()`. Up to 30 days."""

    def __post_init__(self) -> None:
        if self.countdown is not None and self.eta is not None:
            raise OptionError("countdown and eta exclude each other; give one")
        put = object.__setattr__
        if self.countdown is not None:
            # Below zero is now, as in App Engine.
            seconds = max(0.0, _number("countdown", self.countdown))
            put(self, "countdown", _duration("countdown", seconds, 0, COUNTDOWN_SECONDS_MAX))
        if self.eta is not None:
            put(self, "eta", _moment(self.eta))
        put(self, "name", _identifier("name", self.name or None, TASK_ID, "1 to 500 characters of A-Z a-z 0-9 _ -"))
        put(self, "queue", _identifier("queue", self.queue, QUEUE_ID, "1 to 100 characters of A-Z a-z 0-9 -"))
        put(self, "retry", _retry(self.retry))
        put(self, "headers", _headers(self.headers))
        _check_whole("priority", self.priority, -PRIORITY_MAX, PRIORITY_MAX)
        put(self, "tag", _label("tag", self.tag))
        put(self, "key", _label("key", self.key))
        put(self, "deadline", _duration("deadline", self.deadline, 1, DEADLINE_SECONDS_MAX))
        put(self, "retain", _duration("retain", self.retain, 0, RETAIN_SECONDS_MAX))

    def merged(self, **changes: Any) -> TaskOptions:
        """Return these options with some replaced. A new countdown takes the place of an eta, and the reverse.

        Raises: OptionError, also for an option that does not exist."""
        for name in changes:
            if name not in OPTION_NAMES:
                raise OptionError(f"there is no option {name!r}{_did_you_mean(name, OPTION_NAMES)}")
        values = {name: getattr(self, name) for name in OPTION_NAMES}
        if changes.get("countdown") is not None:
            values["eta"] = None
        elif changes.get("eta") is not None:
            values["countdown"] = None
        return TaskOptions(**values | changes)


class TaskOptionArguments(TypedDict, total=False):
    """The fields of `TaskOptions` as keyword arguments."""

    countdown: Seconds | str | None
    eta: datetime | None
    name: str | None
    queue: str | None
    retry: Retry | None
    headers: Mapping[str, str] | None
    priority: int
    tag: str | None
    key: str | None
    deadline: Seconds | None
    retain: Seconds | None


OPTION_NAMES: Final = tuple(field.name for field in fields(TaskOptions))

_SEED_NAMES: Final = {f"_{name}": name for name in OPTION_NAMES if name != "retry"} | {"_retry_options": "retry"}
_APPENGINE_ONLY: Final = ("_target", "_transactional", "_url")


def split_seed_options(kwargs: dict[str, Any]) -> tuple[TaskOptions, dict[str, Any]]:
    """Take the options, which begin with an underscore, out of the keyword arguments of `defer`.

    >>> split_seed_options({"_countdown": 60, "subject": "hi"})
    (TaskOptions(countdown=60.0, ...), {'subject': 'hi'})

    Raises: OptionError for an unknown or faulty option; NotYetError for `_target` and `_transactional`."""
    options: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for name, value in kwargs.items():
        if not name.startswith("_"):
            arguments[name] = value
        elif name in _SEED_NAMES:
            options[_SEED_NAMES[name]] = value
        elif name in _APPENGINE_ONLY:
            _check_appengine_only(name, value)
        else:
            known = sorted([*_SEED_NAMES, *_APPENGINE_ONLY])
            raise OptionError(
                f"unknown option {name!r}{_did_you_mean(name, known)} Names that begin with an underscore are options "
                "of defer and are not passed to the callable."
            )
    if not options:
        return NO_OPTIONS, arguments
    if options.get("priority", 0) is None:
        del options["priority"]
    return TaskOptions(**options), arguments


def queue_id(name: str) -> str:
    """Return the id of a queue given as `mail` or `queues/mail`.

    Raises: OptionError."""
    text = name.removeprefix("queues/") if isinstance(name, str) else ""
    if not QUEUE_ID.fullmatch(text):
        raise OptionError(
            f"{name!r:.120} does not name a queue; write QUEUE or queues/QUEUE, of 1 to 100 characters of A-Z a-z 0-9 -"
        )
    return text


def queue_name(name: str) -> str:
    """Return the resource name `queues/{queue}` of a queue given as `mail` or `queues/mail`.

    Raises: OptionError."""
    return f"queues/{queue_id(name)}"


def task_name(name: str) -> str:
    """Return the resource name `queues/{queue}/tasks/{task}` of a task given so, or as `mail/tasks/x` or `mail/x`.

    Raises: OptionError."""
    parts = name.removeprefix("queues/").split("/") if isinstance(name, str) else []
    match parts:
        case [queue, "tasks", task] | [queue, task] if QUEUE_ID.fullmatch(queue) and TASK_ID.fullmatch(task):
            return f"queues/{queue}/tasks/{task}"
    raise OptionError(f"{name!r} does not name a task; write queues/QUEUE/tasks/TASK, or QUEUE/tasks/TASK for short")


def _check_appengine_only(name: str, value: Any) -> None:
    if name == "_url":
        if value not in (None, "", APPENGINE_DEFERRED_URL):
            raise OptionError(
                f"_url={value!r} has no meaning here: workers fetch tasks and nothing is posted to a URL. Leave it out."
            )
    elif value:
        instead = {
            "_target": "choose workers by queue (_queue) and let them lease from it",
            "_transactional": "defer after the transaction has committed",
        }
        raise NotYetError(f"{name} is not supported yet; {instead[name]}")


def _did_you_mean(name: str, known: Any) -> str:
    import difflib  # Only a mistake needs it.

    beginning = [word for word in known if word.startswith(name)]
    closest = beginning or difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f"; did you mean {closest[0]!r}?" if closest else "."


def _number(name: str, value: Any) -> float:
    try:
        number = value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"{name} must be a number, not {value!r:.100}") from error
    if not math.isfinite(number):
        raise OptionError(f"{name} must be a finite number, not {number}")
    return number


def _duration(name: str, value: Any, least: float, most: float) -> float | None:
    if value is None:
        return None
    seconds = _number(name, value)
    if not least <= seconds <= most:
        raise OptionError(f"{name} must be from {least:,g} to {most:,.0f} seconds, not {seconds:,g}")
    return seconds


def _check_whole(name: str, value: Any, least: int, most: int) -> None:
    if value is None and name != "priority":
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise OptionError(f"{name} must be a whole number, not {value!r:.100}")
    if not least <= value <= most:
        raise OptionError(f"{name} must be from {least:,} to {most:,}, not {value:,}")


def _moment(eta: Any) -> datetime:
    if not isinstance(eta, datetime):
        raise OptionError(f"eta must be a datetime.datetime, not {type(eta).__qualname__}")
    try:
        return eta.astimezone(UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise OptionError(f"eta {eta} cannot be told in UTC") from error


def _identifier(name: str, value: Any, grammar: re.Pattern[str], rule: str) -> str | None:
    if value is not None and not (isinstance(value, str) and grammar.fullmatch(value)):
        raise OptionError(f"{name} must have {rule}, not {value!r:.100}")
    return value


def _label(name: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    _check_text(name, value, LABEL_CHARACTERS_MAX)
    return str(value)


def _headers(headers: Any) -> Mapping[str, str] | None:
    if not headers:
        return None
    if not isinstance(headers, Mapping):
        raise OptionError(f"headers must be a mapping of text to text, not {type(headers).__qualname__}")
    if len(headers) > HEADERS_MAX:
        raise OptionError(f"headers may be {HEADERS_MAX} at most, not {len(headers)}")
    for name, value in headers.items():
        _identifier("a header's name", name, HEADER_NAME, "1 to 100 characters of A-Z a-z 0-9 . _ -")
        _check_text(f"header {name!r}", value, HEADER_VALUE_CHARACTERS_MAX)
    return dict(headers)


def _check_text(name: str, value: Any, characters_max: int) -> None:
    if not isinstance(value, str):
        raise OptionError(f"{name} must be text, not {type(value).__qualname__}")
    if len(value) > characters_max:
        raise OptionError(f"{name} may have {characters_max:,} characters at most, not {len(value):,}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise OptionError(f"{name} is no Unicode text: {error.reason}") from error


def _retry(retry: Any) -> Retry | None:
    if retry is None or isinstance(retry, Retry):
        return retry
    if any(hasattr(retry, field) for field in _APPENGINE_RETRY_FIELDS):
        return Retry.from_appengine(retry)
    raise OptionError(
        f"retry options must be an adjourn.Retry or App Engine's TaskRetryOptions, not {type(retry).__qualname__}"
    )


# Last, because making it runs the checks above.
NO_OPTIONS: Final = TaskOptions()
