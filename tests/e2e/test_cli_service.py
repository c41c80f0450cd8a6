"""The commands that the service adds: what they say of settings and stores that cannot work, and of schemas."""

import os
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.processes import COMMAND, Service

from adjourn_service.config import ServiceConfig, env_name


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ADJOURN_", "GRPC_"))}
    return subprocess.run(
        [COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**clean, **environment},
    )


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/a.db"


def with_schema(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.commit()
    connection.close()


def assert_refused(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("adjourn: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_check_tells_what_migrate_has_to_do_and_changes_nothing(tmp_path: Path, store: str):
    missing = run("migrate", "--check", "--store", store)
    assert (missing.returncode, "there is no store yet" in missing.stdout) == (1, True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.db").touch()
    behind = run("migrate", "--check", "--store", store)
    assert (behind.returncode, "schema 0 is behind" in behind.stdout) == (1, True)
    assert (tmp_path / "a.db").stat().st_size == 0
    assert run("migrate", "--store", store).returncode == 0
    current = run("migrate", "--check", "--store", store)
    assert (current.returncode, "is current" in current.stdout) == (0, True)


def test_check_works_beside_a_running_service_and_migrate_does_not(tmp_path: Path):
    with Service(tmp_path) as service:
        checked = run("migrate", "--check", "--store", service.store)
        assert (checked.returncode, "is current" in checked.stdout) == (0, True)
        assert_refused(run("migrate", "--store", service.store), "in use by another process")


@pytest.mark.parametrize("command", [("serve", "--listen", "127.0.0.1:0"), ("migrate",), ("migrate", "--check")])
def test_a_store_that_cannot_work_is_refused_in_a_line(tmp_path: Path, store: str, command: tuple[str, ...]):
    path = tmp_path / "a.db"
    with_schema(path, 99)
    assert_refused(run(*command, "--store", store), "has schema 99, but this release knows")
    path.write_bytes(b"no database" * 1000)
    assert_refused(run(*command, "--store", store), "file is not a database")
    path.unlink()
    path.mkdir()
    assert_refused(run(*command, "--store", store), str(path))


def test_the_settings_of_serve_are_options_with_their_defaults():
    said = " ".join(run("serve", "--help").stdout.split())
    for name in ServiceConfig.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in said
        assert f"env: {env_name(name)}; default: {getattr(ServiceConfig(), name)}" in said


def test_options_win_over_variables_and_variables_over_the_file(tmp_path: Path):
    file = tmp_path / "adjourn.toml"
    names = [str(tmp_path / f"{name}.db") for name in ("option", "variable", "file")]
    option, variable, in_file = (f"sqlite:///{name}" for name in names)
    file.write_text(f'store = "{in_file}"\n')
    command = ("migrate", "--check", "--config", str(file))
    assert run(*command).stdout.startswith(names[2])
    assert run(*command, ADJOURN_STORE=variable).stdout.startswith(names[1])
    assert run(*command, "--store", option, ADJOURN_STORE=variable).stdout.startswith(names[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--listen", "here", "--store", "redis://"], "listen: 'here' is not HOST:PORT"),
        (["serve", "--listen", "here", "--store", "redis://"], "store: 'redis://' is none of"),
        (["serve", "--drain-grace", "soon"], "drain_grace: 'soon' is not a number"),
        (["serve", "--config", "/nowhere/adjourn.toml"], "cannot read /nowhere/adjourn.toml"),
        (["up", "--listen", "0.0.0.0:7766"], "for this machine only"),
        (["up", "--listen", "127.0.0.1:70000"], "is neither a port nor"),
        (["up", "--data-dir", "/dev/null"], "cannot open the store /dev/null/adjourn.db"),
    ],
)
def test_wrong_settings_are_refused_in_a_line(arguments: list[str], said: str):
    assert_refused(run(*arguments), said)


@pytest.fixture(params=[b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["mute", "http"])
def stranger(request: pytest.FixtureRequest) -> Iterator[str]:
    """Something listens, but it is not the service."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                accepted.append(connection)
                connection.sendall(request.param)

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in accepted:
            connection.close()


def test_a_wrong_port_is_told_as_a_service_that_was_not_reached(stranger: str):
    done = run("--target", stranger, "queues", "list", ADJOURN_TIMEOUT="1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert done.stderr.startswith("adjourn: ")
    assert stranger in done.stderr
