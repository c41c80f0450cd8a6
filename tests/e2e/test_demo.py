"""`adjourn demo` with its kill, and `adjourn up` with its ends."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.processes import COMMAND, Process, Service

import adjourn
from adjourn.client import Client

FILES = 300
"""Enough that the kill finds a task running."""


def test_the_demo_survives_its_kill_and_counts_what_really_ran(tmp_path: Path):
    folder = tmp_path / "demo"
    command = [COMMAND, "demo", "--json", "--limit", str(FILES), "--processes", "2", "--keep", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["tasks"] == FILES
    assert figures["lost"] == 0
    assert figures["tasks_per_second"] > 0
    assert "killed process" in done.stderr
    # What the figures claim, counted once more.
    assert figures["attempts"] == len(list((folder / "runs").iterdir()))
    assert figures["duplicates"] == figures["attempts"] - FILES == 1
    assert len(list((folder / "reports").glob("*.json"))) == FILES


def test_the_demo_tells_people_the_recorded_cause(tmp_path: Path):
    command = [COMMAND, "demo", "--limit", str(FILES), "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"tasks       {FILES} in" in done.stdout
    assert "SIGKILL in attempt 1; then succeeded" in done.stdout


def test_the_demo_leaves_a_folder_with_files_alone(tmp_path: Path):
    (tmp_path / "precious").touch()
    done = subprocess.run([COMMAND, "demo", "--keep", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not empty" in done.stderr


class Up(Process):
    """`adjourn up` on a free port."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [COMMAND, "up", "--port", "0", "--data-dir", str(folder / "data"), "--processes", "1", *options]
        super().__init__(command, folder / "up.log")

    def target(self) -> str:
        return self.wait_for_log(r"listening address=(\S+)")[1]

    def pid_of(self, part: str) -> int:
        """Return the pid of the service or the worker."""
        for pid in map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()):
            if part in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                return pid
        raise AssertionError(f"no {part} among the children")


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    with Up(tmp_path, "json") as up:
        up.wait_for_log("worker +| .*connected")
        yield up


def test_up_runs_tasks_and_stops_the_worker_before_the_service(up: Up):
    adjourn.configure(target=up.target())
    handle = adjourn.defer(len, "four", _retain=60)
    assert handle.result(30) == 4
    up.kill(signal.SIGINT)
    assert up.wait() == 0
    log = up.log.read_text()
    assert log.index("worker stopped") < log.index("stopping grace_seconds")


@pytest.mark.parametrize("part", ["serve", "worker"])
def test_up_ends_with_an_error_when_a_part_dies(up: Up, part: str):
    os.kill(up.pid_of(part), signal.SIGKILL)
    assert up.wait() == 1
    assert "was ended by SIGKILL; the log above says why" in up.log.read_text()


def test_what_was_deferred_before_up_ended_is_there_when_it_starts_again(tmp_path: Path):
    with Up(tmp_path) as up:
        with Client(up.target()) as client:
            client.pause_queue("default")
        adjourn.configure(target=up.target())
        handle = adjourn.defer(len, "four", _retain=60)
        assert up.stop() == 0
        up.start()
        adjourn.configure(target=up.target())
        with Client(up.target()) as client:
            client.resume_queue("default")
        assert handle.result(30) == 4
        assert up.stop() == 0


def test_up_says_in_one_line_why_it_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Left behind by `adjourn worker` in a test that ran it in this process.
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    with Service(tmp_path) as service:
        command = [COMMAND, "up", "--port", str(service.port), "--data-dir", str(tmp_path / "data")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"adjourn: cannot listen on 127.0.0.1:{service.port}")
    assert done.stderr.count("\n") == 1
