"""The settings of the service; the only reader of its environment and of its TOML file."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args
from urllib.parse import unquote, urlsplit

from adjourn_service.errors import ConfigError

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LogFormat = Literal["text", "json"]

INLINE_LIMIT_MAX: Final = 1 << 20
"""As the wire API says of Task.payload."""

_ENV_PREFIX: Final = "ADJOURN_"


def _about(text: str, *, least: float | None = None, most: float | None = None) -> Mapping[str, object]:
    """Return what `--help` says of a setting, and its bounds."""
    return {"help": text, "least": least, "most": most}


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """Settings of `adjourn serve`, each with its unit, its default and its reason in its metadata.

    Raises: ConfigError, with every fault."""

    listen: str = field(
        default="localhost:7766",
        metadata=_about("Address and port of the gRPC service; port 0 takes a free one. Loopback only, by default."),
    )
    store: str = field(
        default="sqlite:///adjourn.db",
        metadata=_about(
            "Where tasks live: sqlite:///relative.db, sqlite:////absolute/path.db, or memory: (lost at exit).",
        ),
    )
    inline_limit: int = field(
        default=32 * 1024,
        metadata=_about(
            "Largest payload of a task, in bytes. Payloads lie in the store with their tasks; at most 1 MiB.",
            least=1,
            most=INLINE_LIMIT_MAX,
        ),
    )
    idempotency_window: float = field(
        default=600.0,
        metadata=_about(
            "How long the id of a create is remembered, in seconds: longer than any caller goes on repeating one.",
            least=1,
            most=86_400,
        ),
    )
    max_request_bytes: int = field(
        default=16 << 20,
        metadata=_about(
            "Largest request, in bytes: 1,000 creates of the default inline limit.", least=1 << 20, most=256 << 20
        ),
    )
    drain_grace: float = field(
        default=5.0,
        metadata=_about("How long calls under way may go on after SIGTERM, in seconds.", least=0, most=3600),
    )
    log_level: LogLevel = field(
        default="INFO", metadata=_about("Least severe messages to log: DEBUG, INFO, WARNING or ERROR.")
    )
    log_format: LogFormat = field(
        default="text", metadata=_about("Form of a log line: text, or json with one object a line.")
    )

    def __post_init__(self) -> None:
        faults = [fault for each in fields(self) for fault in _faults(each, getattr(self, each.name))]
        for check in (self._check_listen, self._check_store):
            try:
                check()
            except ConfigError as fault:
                faults.append(str(fault))
        if faults:
            raise ConfigError("; ".join(faults))

    @classmethod
    def load(cls, flags: Mapping[str, object], environ: Mapping[str, str], toml_path: Path | None = None) -> Self:
        """Return the settings from flags (None: not given), ADJOURN_* variables and a TOML file, in that order.

        Raises: ConfigError, also for a name in the file that is no setting."""
        known = {each.name: each for each in fields(cls)}
        values = _read_toml(toml_path) if toml_path is not None else {}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
                raise ConfigError(f"{toml_path}: {name!r} is no setting{hint}")
        values |= {name: environ[env] for name in known if (env := _ENV_PREFIX + name.upper()) in environ}
        values |= {name: value for name, value in flags.items() if value is not None}
        parsed: dict[str, Any] = {name: _parse(known[name].type, name, value) for name, value in values.items()}
        return cls(**parsed)

    def sqlite_path(self) -> Path | None:
        """Return the file of a sqlite store; None for another kind."""
        url = urlsplit(self.store)
        return Path(unquote(url.path[1:])) if url.scheme == "sqlite" else None

    def _check_listen(self) -> None:
        host, colon, port = self.listen.rpartition(":")
        if not (host and colon and port.isdecimal() and int(port) < 1 << 16):
            raise ConfigError(f"listen: {self.listen!r} is not HOST:PORT, such as localhost:7766 or [::]:7766")

    def _check_store(self) -> None:
        url = urlsplit(self.store)
        if url.scheme == "memory" and self.store == "memory:":
            return
        if url.scheme in ("postgres", "postgresql"):
            raise ConfigError("store: PostgreSQL is not in this release yet; use sqlite:///PATH")
        if url.scheme != "sqlite" or url.netloc or len(url.path) < 2:
            raise ConfigError(
                f"store: {self.store!r} is none of sqlite:///RELATIVE, sqlite:////ABSOLUTE and memory:"
                " (mind the number of slashes)"
            )


def env_name(setting: str) -> str:
    """Return the variable that gives the setting."""
    return _ENV_PREFIX + setting.upper()


def _faults(setting: Any, value: Any) -> list[str]:
    least, most = setting.metadata["least"], setting.metadata["most"]
    choices = get_args(setting.type)
    if choices and value not in choices:
        return [f"{setting.name}: {value!r} is none of {', '.join(choices)}"]
    if least is not None and not least <= value <= most:
        return [f"{setting.name}: {value} is not between {least} and {most}"]
    return []


def _parse(kind: Any, name: str, value: object) -> object:
    if kind not in (int, float):
        return str(value)
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {value!r} is not a number") from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
