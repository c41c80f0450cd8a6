"""The command `adjourn` against a real service: what it prints, and what it tells the shell."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.processes import COMMAND, Service

from adjourn.calls import batch_create, create_request
from adjourn.client import Client
from adjourn.options import TaskOptions
from adjourn.payload import encode_call


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Service(tmp_path_factory.mktemp("service")) as service:
        yield service.target


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    with Client(target) as client:
        yield client


@pytest.fixture
def queue(adjourn, request):
    """A queue of the test's own."""
    name = request.node.name.replace("_", "-")[:100]
    assert adjourn("queues", "create", name).returncode == 0
    return name


@pytest.fixture
def adjourn(target: str):
    def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
        # Short enough that the test of a service that is not there does not take long.
        environment = {**os.environ, "ADJOURN_TARGET": target, "ADJOURN_TIMEOUT": "2"}
        environment.pop("GRPC_VERBOSITY", None)  # Left behind by tests that run `adjourn worker` in this process.
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "env": environment, **options}
        return subprocess.run([COMMAND, *arguments], text=True, check=False, timeout=60, **options)

    return run


def create(client: Client, queue: str, **options) -> str:
    """Create a task that no worker runs; return its name."""
    call = encode_call(print, (), {}, None)
    request = create_request(f"queues/{queue}", TaskOptions(**options), call)
    assert client.call(batch_create([request])) == {}
    return f"{queue}/{request.task_id or request.request_id}"


def fields(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return the names and values that a command printed, a pair a line."""
    pairs = (re.split(r"\s{2,}", line, maxsplit=1) for line in done.stdout.splitlines() if "  " in line)
    return dict(pairs)


def test_a_queue_is_made_with_a_policy_and_shown(adjourn):
    options = [
        "--max-attempts",
        "5",
        "--min-backoff",
        "1h30m",
        "--rate",
        "2.5",
        "--stop",
        "all",
        "--lease-duration",
        "500s",
    ]
    made = adjourn("queues", "create", "mail", *options)
    assert (made.returncode, made.stdout, made.stderr) == (0, "created mail\n", "")
    shown = fields(adjourn("queues", "show", "mail"))
    assert shown["max-attempts"] == "5"
    assert shown["min-backoff"] == "1h30m"
    assert shown["rate"] == "2.5"
    assert shown["stop"] == "all"
    assert shown["lease-duration"] == "8m20s"
    assert shown["state"] == "running"
    assert shown["ready"] == "0"


def test_a_field_is_changed_alone_and_reset_by_default(adjourn, queue):
    adjourn("queues", "update", queue, "--max-attempts", "5", "--jitter", "0.5")
    changed = json.loads(adjourn("queues", "update", queue, "--max-attempts", "default", "--json").stdout)
    assert changed["name"] == f"queues/{queue}"
    assert changed["retry_policy"]["max_attempts"] == 100
    assert changed["retry_policy"]["jitter"] == 0.5


def test_an_update_of_nothing_is_refused(adjourn, queue):
    done = adjourn("queues", "update", queue)
    assert done.returncode == 2
    assert "at least one option" in done.stderr


def test_json_of_a_list_is_an_object_a_line(adjourn, queue, client):
    create(client, queue, name="a", countdown=60)
    lines = adjourn("queues", "list", "--json").stdout.splitlines()
    found = {each["name"]: each for each in map(json.loads, lines)}
    assert found[f"queues/{queue}"]["stats"]["scheduled_count"] == "1"
    assert found["queues/default"]["stats"]["ready_count"] == "0"


def test_lists_are_plain_columns_where_there_is_no_terminal(adjourn, queue, client):
    create(client, queue, name="a")
    heading, row = adjourn("tasks", "list", "--queue", queue).stdout.splitlines()
    assert heading.split()[:3] == ["TASK", "STATE", "CALLABLE"]
    assert row.split()[:4] == [f"{queue}/a", "ready", "builtins.print", "0"]


def test_tasks_are_listed_by_state_tag_and_key(adjourn, queue, client):
    create(client, queue, name="a", tag="red")
    create(client, queue, name="b", key="42")
    create(client, queue, name="c", countdown=60)

    def names(*options: str) -> list[str]:
        lines = adjourn("tasks", "list", "--queue", queue, "--json", *options).stdout.splitlines()
        return [json.loads(line)["name"].rpartition("/")[2] for line in lines]

    assert names() == ["a", "b", "c"]
    assert names("--tag", "red") == ["a"]
    assert names("--key", "42") == ["b"]
    assert names("--state", "scheduled") == ["c"]
    assert names("--limit", "2") == ["a", "b"]
    assert names("--state", "dead") == []


def test_a_task_is_run_cancelled_retried_and_deleted(adjourn, queue, client):
    name = create(client, queue, name="a", countdown=60)
    full = f"queues/{queue}/tasks/a"
    for verb, said, state in (
        ("run", f"made ready {name}\n", "ready"),
        ("cancel", f"cancelled {name}\n", "cancelled"),
        ("retry", f"made ready {name}\n", "ready"),
    ):
        done = adjourn("tasks", verb, name)
        assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
        assert fields(adjourn("tasks", "show", full))["state"] == state
    assert adjourn("tasks", "delete", name, "--yes").stdout == f"deleted {name}\n"
    assert adjourn("tasks", "show", name).returncode == 4


def test_one_bad_name_does_not_keep_the_others_from_being_done(adjourn, queue, client):
    good = create(client, queue, name="a", countdown=60)
    done = adjourn("tasks", "run", f"{queue}/nope", good)
    assert done.stdout == f"made ready {good}\n"
    assert done.returncode == 4


def test_a_queue_is_paused_and_resumed(adjourn, queue):
    assert adjourn("queues", "pause", queue).stdout == f"paused {queue}\n"
    assert "paused" in adjourn("queues", "show", queue).stdout
    assert adjourn("queues", "resume", queue).stdout == f"resumed {queue}\n"
    assert "running" in adjourn("queues", "show", queue).stdout


def test_with_yes_purge_and_delete_do_not_ask(adjourn, queue, client):
    create(client, queue)
    assert adjourn("queues", "purge", queue, "--yes").stdout == f"purged {queue} of 1 tasks\n"
    assert adjourn("queues", "delete", queue, "--yes").stdout == f"deleted {queue}\n"


def test_without_a_terminal_and_yes_nothing_is_removed(adjourn, queue, client):
    name = create(client, queue, name="a")
    for command in (("queues", "purge", queue), ("queues", "delete", queue, "--force"), ("tasks", "delete", name)):
        done = adjourn(*command)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "give --yes" in done.stderr
    assert fields(adjourn("tasks", "show", name))["state"] == "ready"


@pytest.mark.parametrize(("answer", "left", "status"), [("n", "1", 1), ("y", "0", 0)])
def test_on_a_terminal_purge_asks(adjourn, client, answer, left, status):
    queue = f"asks-{answer}"
    adjourn("queues", "create", queue)
    create(client, queue)
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{answer}\n".encode())
        done = adjourn("queues", "purge", queue, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == status
    assert "Remove every task" in done.stderr
    assert fields(adjourn("queues", "show", queue))["ready"] == left


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["queues", "show", "nope"], 4, "queue 'nope' does not exist"),
        (["tasks", "show", "default/nope"], 4, "does not exist"),
        (["tasks", "show", "nope"], 2, "does not name a task"),
        (["queues", "create", "default"], 5, "exists already"),
        (["queues", "delete", "default", "--yes"], 5, "cannot be deleted"),
        (["queues", "create", "a b"], 2, "does not name a queue"),
        (["queues", "create", "x", "--jitter", "7"], 2, "jitter"),
        (["queues", "create", "x", "--max-age", "5"], 2, "'5' is not a duration; write 500ms, 30s"),
        (["queues", "create", "x", "--max-attempts", "9" * 20], 2, "out of its bounds"),
        (["queues", "create", "x", "--burst", "many"], 2, "'many' is not a whole number"),
        (["queues", "create", "x", "--max-age", "9" * 25 + "d"], 2, "is longer than any duration may be"),
        (["queues", "create", "x", "--max-age", "9" * 400 + "d"], 2, "is longer than any duration may be"),
        (["queues", "create", b"\xff"], 2, "'\\udcff' cannot be written as utf-8"),
        (["tasks", "list", "--tag", b"\xff"], 2, "'\\udcff' cannot be written as utf-8"),
        (["--target", "", "queues", "list"], 2, "it is empty; write HOST:PORT"),
        (["demo", "--keep", "/dev/null/x"], 2, "cannot use /dev/null/x: Not a directory"),
        (["tasks", "list", "--queue", "nope"], 4, "queue 'nope' does not exist"),
        (["tasks", "list", "--state", "lost"], 2, "'lost' is not one of"),
        (["--target", "localhost:1", "queues", "list"], 3, "cannot reach the adjourn service at localhost:1"),
        (["queue"], 2, "there is no command 'queue'; there are demo, migrate, queues"),
        (["queues", "list", "--nope"], 2, "see 'adjourn queues list --help'"),
    ],
)
def test_an_error_is_one_line_and_a_status(adjourn, arguments, status, said):
    done = adjourn(*arguments)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.startswith("adjourn: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_a_reader_that_leaves_is_no_matter_for_a_message(adjourn, queue, client):
    create(client, queue)
    read, write = os.pipe()
    os.close(read)
    done = adjourn("tasks", "list", capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_help_and_version_need_neither_grpc_nor_the_service(adjourn):
    code = (
        "import sys; from adjourn.cli import main\n"
        "for arguments in (['--version'], ['--help'], ['tasks', 'list', '--help']):\n"
        "    assert main(arguments) == 0\n"
        "print(*sorted({'grpc', 'google.protobuf', 'apsw', 'rich', 'uvloop'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
    assert "Exit status" in done.stdout


def test_commands_on_tasks_never_load_the_service(adjourn, target):
    code = (
        "import sys; from adjourn.cli import main\n"
        f"assert main(['--target', {target!r}, 'tasks', 'list']) == 0\n"
        "print(*(name for name in sys.modules if name.startswith('adjourn_service')), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


def test_without_the_service_s_packages_serve_says_what_to_install(tmp_path: Path):
    code = (
        "import sys; sys.modules['apsw'] = None\n"
        "from adjourn.cli import main\n"
        f"sys.exit(main(['serve', '--listen', 'localhost:0', '--store', 'sqlite:///{tmp_path}/a.db']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'adjourn[service]'" in done.stderr
    assert done.stderr.count("\n") == 1
