"""What a client needs to know, read once from the environment. Nothing else in the client reads it.

Unknown ADJOURN_* names are not refused here: worker and service share the prefix and have names of their own."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from adjourn.errors import ConfigError
from adjourn.options import QUEUE_ID
from adjourn.signing import SigningKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_TARGET: Final = "localhost:7766"
DEFAULT_TIMEOUT_SECONDS: Final = 10.0
DEFAULT_QUEUE: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Settings of a client process.

    Raises: ConfigError that names every fault."""

    target: str = DEFAULT_TARGET
    """Where the service listens, as gRPC names it: `host:port`, `dns:///host:port`, `unix:path`. ADJOURN_TARGET."""

    timeout: float = DEFAULT_TIMEOUT_SECONDS
    """Seconds a call may take, retries included. More than 0. ADJOURN_TIMEOUT. The default rides out a rolling restart
    and still answers a web request."""

    signing_keys: SigningKeys | None = None
    """Keys that sign payloads and verify results. ADJOURN_SIGNING_KEYS as `id:secret,id:secret`; the first signs."""

    queue: str = DEFAULT_QUEUE
    """Queue of the tasks that name none. ADJOURN_QUEUE."""

    main: str | None = None
    """The script that workers run as their `__main__` (`adjourn worker --main`): functions of this very file may be
    deferred from it. ADJOURN_MAIN."""

    def __post_init__(self) -> None:
        faults = []
        if not self.target or self.target.isspace():
            faults.append("target must not be empty; give host:port, such as adjourn:7766")
        if not (isinstance(self.timeout, (int, float)) and 0 < self.timeout < math.inf):
            faults.append(f"timeout must be a number of seconds above 0, not {self.timeout!r}")
        if not QUEUE_ID.fullmatch(self.queue):
            faults.append(f"queue must have 1 to 100 characters of A-Z a-z 0-9 -, not {self.queue!r}")
        if faults:
            raise ConfigError("; ".join(faults))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ClientConfig:
        """Read ADJOURN_*; an empty variable counts as unset.

        Raises: ConfigError that names every faulty variable."""
        environment = os.environ if environment is None else environment
        fields: dict[str, Any] = {}
        faults = []
        for variable, field, read in _VARIABLES:
            if not (text := environment.get(variable, "").strip()):
                continue
            try:
                value = read(text)
                cls(**{field: value})
                fields[field] = value
            except ConfigError as error:
                faults.append(f"{variable}: {error}")
        if faults:
            raise ConfigError("; ".join(faults))
        return cls(**fields)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"must be a number of seconds, not {text!r}") from error


_VARIABLES: Final[tuple[tuple[str, str, Callable[[str], Any]], ...]] = (
    ("ADJOURN_TARGET", "target", str),
    ("ADJOURN_TIMEOUT", "timeout", _seconds),
    ("ADJOURN_SIGNING_KEYS", "signing_keys", SigningKeys.parse),
    ("ADJOURN_QUEUE", "queue", str),
    ("ADJOURN_MAIN", "main", str),
)

_current: ClientConfig | None = None
_listeners: list[Callable[[], None]] = []


def current_config() -> ClientConfig:
    """Return the configuration of this process, read from the environment the first time.

    Raises: ConfigError."""
    global _current
    if _current is None:
        _current = ClientConfig.from_environment()
    return _current


def configure(
    *,
    target: str | None = None,
    timeout: float | None = None,
    signing_keys: SigningKeys | str | None = None,
    queue: str | None = None,
    main: str | None = None,
) -> None:
    """Replace the configuration of this process: what is given here, over the environment, over the defaults.

    `signing_keys` may be text in the form of ADJOURN_SIGNING_KEYS. The default client is dropped, and the next call
    makes a new one; handles and clients made before keep theirs.

    Raises: ConfigError."""
    global _current
    if isinstance(signing_keys, str):
        signing_keys = SigningKeys.parse(signing_keys)
    given: dict[str, Any] = {
        "target": target,
        "timeout": timeout,
        "signing_keys": signing_keys,
        "queue": queue,
        "main": main,
    }
    config = replace(ClientConfig.from_environment(), **{name: v for name, v in given.items() if v is not None})
    _current = config
    for changed in _listeners:
        changed()


def on_configure(changed: Callable[[], None]) -> None:
    """Have `changed` called after every `configure`."""
    _listeners.append(changed)
