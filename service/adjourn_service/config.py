"""The settings of the service; the only reader of its environment and of its TOML file."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args
from urllib.parse import unquote

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
        default="127.0.0.1:7766",
        metadata=_about(
            "Address and port of the gRPC service: loopback by default, [::]:7766 for all addresses, port 0 for a free"
            " port."
        ),
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

        Raises: ConfigError, with every fault, also for a name in the file that is no setting."""
        known = {each.name: each for each in fields(cls)}
        values = _read_toml(toml_path) if toml_path is not None else {}
        faults = []
        for name in values.keys() - known.keys():
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            faults.append(f"{toml_path}: {name!r} is no setting{hint}")
            del values[name]
        values |= {name: environ[env] for name in known if (env := env_name(name)) in environ}
        values |= {name: value for name, value in flags.items() if value is not None}
        parsed: dict[str, Any] = {}
        for name, value in values.items():
            try:
                parsed[name] = _parse(known[name].type, value)
            except (ValueError, OverflowError):
                faults.append(f"{name}: {value!r} is not a{' whole' if known[name].type is int else ''} number")
        if not faults:
            return cls(**parsed)
        # The default stands in for what could not be read, so that the faults of the other settings are told too.
        try:
            cls(**parsed)
        except ConfigError as error:
            faults.append(str(error))
        raise ConfigError("; ".join(faults))

    def sqlite_path(self) -> Path | None:
        """Return the file of a sqlite store; None for another kind."""
        path = self.store.removeprefix("sqlite:///")
        return None if path == self.store else Path(unquote(path))

    def _check_listen(self) -> None:
        host, colon, port = self.listen.rpartition(":")
        if not (host and colon and port.isascii() and port.isdecimal() and int(port) < 1 << 16):
            raise ConfigError(f"listen: {self.listen!r} is not HOST:PORT, such as localhost:7766 or [::]:7766")

    def _check_store(self) -> None:
        if self.store == "memory:":
            return
        if self.store.startswith(("postgres:", "postgresql:")):
            raise ConfigError("store: PostgreSQL is not in this release yet; use sqlite:///PATH")
        path = self.store.removeprefix("sqlite:///")
        # In a URL a ? or # ends the path: the file would be another than the one that was meant.
        if path == self.store or not path or "?" in path or "#" in path:
            raise ConfigError(
                f"store: {self.store!r} is none of sqlite:///RELATIVE, sqlite:////ABSOLUTE and memory:"
                " (mind the number of slashes; write ? as %3F and # as %23)"
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


def _parse(kind: Any, value: object) -> object:
    """Return a value as the kind that its setting has. Raises: ValueError, OverflowError."""
    if kind not in (int, float):
        return str(value)
    if (
        not isinstance(value, (str, int, float))
        or isinstance(value, bool)
        or (kind is int and int(value) != float(value))
    ):
        raise ValueError
    return kind(value)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
