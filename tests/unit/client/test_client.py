"""Deadlines, retries, merging, errors, threads and forks, against a service in this process or another."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import adjourn
from adjourn import calls, errors
from adjourn.client import Client, default_client
from adjourn.config import ClientConfig
from adjourn.options import NO_OPTIONS
from adjourn.payload import encode_call
from adjourn.v1 import queue_pb2, task_pb2
from tests.unit.client import samples
from tests.unit.client.fake_service import FakeService, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def prepared(number: int = 1, queue: str = "default") -> list[Any]:
    return [
        calls.create_request(f"queues/{queue}", NO_OPTIONS, encode_call(samples.add, (i,), {})) for i in range(number)
    ]


# Reaching the service


def test_service_that_is_down_gives_a_clear_error_within_the_timeout():
    target = f"127.0.0.1:{unused_port()}"
    adjourn.configure(target=target, timeout=0.5)
    began = time.monotonic()
    with pytest.raises(
        adjourn.ServiceUnavailable, match=f"{target}.*adjourn serve.*adjourn up.*ADJOURN_TARGET"
    ) as failure:
        adjourn.defer(samples.add, 1)
    assert time.monotonic() - began < 2
    assert isinstance(failure.value, ConnectionError)
    assert "\n" not in str(failure.value)


def test_service_that_never_answers_is_given_up_at_the_deadline(service):
    service.open_gate.clear()
    client = Client(config=ClientConfig(target=service.target, timeout=0.3))
    with pytest.raises(adjourn.DeadlineExceeded, match="did not answer in time") as failure:
        client.get_task("default/tasks/x")
    assert isinstance(failure.value, TimeoutError)
    with pytest.raises(adjourn.DeadlineExceeded):
        client.create_tasks(prepared())


def test_service_that_comes_up_in_time_is_found():
    port = unused_port()
    client = Client(f"127.0.0.1:{port}")
    with ThreadPoolExecutor(1) as pool:
        created = pool.submit(client.create_tasks, prepared())
        service = FakeService(port)
        assert created.result() == {}
    assert len(service.tasks) == 1
    service.stop()


def test_unavailable_create_is_repeated_with_the_same_request_id(service):
    service.faults += [status_of("UNAVAILABLE", "stopping", "SHUTTING_DOWN"), status_of("UNAVAILABLE", "moving")]
    handle = adjourn.defer(samples.add, 1)
    assert service.calls == ["BatchCreate"] * 3
    assert list(service.tasks) == [handle.name]


def test_create_whose_answer_was_lost_makes_no_second_task(service):
    (request,) = prepared()
    client = default_client()
    client.create_tasks([request])
    assert client.create_tasks([request]) == {}
    assert len(service.tasks) == 1


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED", "FAILED_PRECONDITION", "UNKNOWN"])
def test_no_other_error_is_retried(service, code):
    service.faults.append(status_of(code, "no"))
    with pytest.raises(adjourn.ServiceError):
        adjourn.defer(samples.add, 1)
    assert service.calls == ["BatchCreate"]


def test_full_store_is_an_error_at_once(service):
    service.faults.append(status_of("RESOURCE_EXHAUSTED", "disk full", "STORE_FULL"))
    with pytest.raises(adjourn.StoreFull, match="disk full"):
        adjourn.defer(samples.add, 1)


def test_what_may_not_be_repeated_is_not_retried(service):
    service.faults.append(status_of("UNAVAILABLE", "moving"))
    with pytest.raises(adjourn.ServiceUnavailable):
        default_client().cancel_task("default/tasks/x")
    assert service.calls == ["Cancel"]


# Errors


def test_every_reason_of_the_wire_api_has_its_error():
    from adjourn.v1 import error_reason_pb2

    kinds = {
        "INVALID_FIELD": errors.InvalidRequest,
        "QUEUE_NOT_FOUND": errors.QueueNotFound,
        "QUEUE_EXISTS": errors.QueueExists,
        "QUEUE_NOT_EMPTY": errors.QueueNotEmpty,
        "QUEUE_PROTECTED": errors.QueueProtected,
        "TASK_NOT_FOUND": errors.TaskNotFound,
        "TASK_EXISTS": errors.TaskExists,
        "TASK_NAME_TOMBSTONED": errors.TaskNameTombstoned,
        "TASK_STATE": errors.TaskStateError,
        "PAYLOAD_TOO_LARGE": errors.PayloadTooLarge,
        "REQUEST_ID_OUT_OF_WINDOW": errors.RequestIdOutOfWindow,
        "LEASE_LOST": errors.LeaseLost,
        "STORE_FULL": errors.StoreFull,
        "STORE_UNAVAILABLE": errors.ServiceUnavailable,
        "SHUTTING_DOWN": errors.ServiceUnavailable,
        "PAGE_TOKEN": errors.InvalidRequest,
        "INTERNAL": errors.InternalError,
    }
    declared = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118  -- not a dict.
    assert declared == set(kinds)
    for reason, kind in kinds.items():
        error = calls.service_error("UNKNOWN", "text", status_of("UNKNOWN", "text", reason, queue="q"))
        assert type(error) is kind
        assert (error.reason, error.metadata) == (reason, {"queue": "q"})


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", errors.InvalidRequest),
        ("UNAVAILABLE", errors.ServiceUnavailable),
        ("PERMISSION_DENIED", errors.PermissionDenied),
        ("UNIMPLEMENTED", errors.ServiceError),
        ("NOT_FOUND", errors.ServiceError),
    ],
)
def test_unknown_reason_falls_back_on_the_code(code, kind):
    error = calls.service_error(code, "text", status_of(code, "text", "FROM_THE_FUTURE"))
    assert type(error) is kind
    assert error.code == code


def test_field_violations_are_told_in_the_message(service):
    violations = [("task.priority", "must be at most 1000")]
    service.faults.append(status_of("INVALID_ARGUMENT", "invalid request", "INVALID_FIELD", violations))
    with pytest.raises(
        adjourn.InvalidRequest, match=r"invalid request \(task.priority: must be at most 1000\)"
    ) as failure:
        adjourn.defer(samples.add, 1)
    assert failure.value.violations == tuple(violations)
    assert failure.value.__cause__ is not None


def test_item_is_not_told_its_position_in_a_merged_request(service):
    requests = prepared(3)
    requests[2].task.priority = 5000
    (failure,) = default_client().create_tasks(requests).values()
    assert isinstance(failure, adjourn.InvalidRequest)
    assert failure.violations == (("task.priority", "must be from -1000 to 1000"),)
    assert "requests[" not in str(failure)


def test_errors_can_be_pickled():
    error = calls.service_error("NOT_FOUND", "gone", status_of("NOT_FOUND", "gone", "QUEUE_NOT_FOUND", queue="q"))
    for original in (error, errors.BatchError("one", {1: error}, 2), errors.TaskFailed("x", remote_type="T")):
        copied = pickle.loads(pickle.dumps(original))
        assert (type(copied), str(copied)) == (type(original), str(original))
        assert vars(copied).keys() == vars(original).keys()


# Merging


def test_calls_that_arrive_while_one_is_on_its_way_are_sent_together(service):
    service.open_gate.clear()
    with ThreadPoolExecutor(20) as pool:
        first = [pool.submit(adjourn.defer, samples.add, 0) for _ in range(calls.BATCHES_IN_FLIGHT_MAX)]
        for _ in first:
            service.arrived.acquire()
        rest = [pool.submit(adjourn.defer, samples.add, i) for i in range(10)]
        outbox = default_client()._connection().outbox
        while len(outbox._queue) < len(rest):
            os.sched_yield()
        service.open_gate.set()
        handles = [future.result() for future in first + rest]
    # Both leaders hand on when their requests are answered.
    assert len(service.batch_sizes) <= len(first) + 2
    assert sum(service.batch_sizes) == len(first) + len(rest)
    assert {handle.name for handle in handles} == set(service.tasks)


def test_the_callers_of_a_request_share_the_next_one_too(service):
    rounds, threads = 20, 8
    barrier = threading.Barrier(threads)

    def work() -> None:
        barrier.wait()
        for number in range(rounds):
            adjourn.defer(samples.add, number)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sum(service.batch_sizes) == rounds * threads
    # Two halves that take turns would be ideal; one alone and the rest behind it would be as many, but not as even.
    assert sum(size == 1 for size in service.batch_sizes) < rounds
    assert len(service.batch_sizes) < 3 * rounds


def test_merged_calls_get_their_own_errors(service):
    service.open_gate.clear()
    with ThreadPoolExecutor(20) as pool:
        first = [pool.submit(adjourn.defer, samples.add, 0) for _ in range(calls.BATCHES_IN_FLIGHT_MAX)]
        for _ in first:
            service.arrived.acquire()
        good = [pool.submit(adjourn.defer, samples.add, i) for i in range(3)]
        bad = [pool.submit(adjourn.defer, samples.add, i, _queue="nowhere") for i in range(3)]
        outbox = default_client()._connection().outbox
        while len(outbox._queue) < 6:
            os.sched_yield()
        service.open_gate.set()
        assert all(future.result().name in service.tasks for future in good)
        assert all(isinstance(future.exception(), adjourn.QueueNotFound) for future in bad)


def test_many_threads_lose_nothing_over_an_unavailable_service(service):
    def work(number: int) -> list[str]:
        return [adjourn.defer(samples.add, number, i).name for i in range(20)]

    service.faults += [status_of("UNAVAILABLE", "moving")] * 8
    with ThreadPoolExecutor(16) as pool:
        names = [name for part in pool.map(work, range(16)) for name in part]
    assert len(names) == len(set(names)) == len(service.tasks) == 320


def test_caller_with_time_left_outlives_the_one_that_led_it():
    """A request that fails at its leader's deadline is sent again by those who came later."""
    from adjourn.outbox import Outbox

    sent: list[list[str]] = []
    gates = {"busy0": threading.Event(), "busy1": threading.Event()}

    def send(requests: Any, deadline: float) -> dict[int, Any]:
        sent.append(list(requests))
        if requests[0] in gates:
            gates[requests[0]].wait()
        if "late" in requests and "lead" in requests:
            raise errors.ServiceUnavailable("down")
        return {}

    outbox: Outbox[str] = Outbox(send)
    with ThreadPoolExecutor(8) as pool:
        busy = [pool.submit(outbox.put, [f"busy{i}"], 1, time.monotonic() + 60) for i in range(2)]
        while len(sent) < 2:
            os.sched_yield()
        lead = pool.submit(outbox.put, ["lead"], 1, time.monotonic() + 30)
        while len(outbox._queue) < 1:
            os.sched_yield()
        late = pool.submit(outbox.put, ["late"], 1, time.monotonic() + 60)
        while len(outbox._queue) < 2:
            os.sched_yield()
        gates["busy0"].set()
        assert isinstance(lead.exception(), errors.ServiceUnavailable)
        assert late.result() == {}
        gates["busy1"].set()
        assert [future.result() for future in busy] == [{}, {}]
    assert sent[2:] == [["lead", "late"], ["late"]]


def test_interrupted_leader_does_not_take_the_others_down():
    from adjourn.outbox import Outbox

    sent: list[list[str]] = []
    gate = threading.Event()

    def send(requests: Any, deadline: float) -> dict[int, Any]:
        sent.append(list(requests))
        gate.wait()
        if requests[0] == "interrupted":
            raise KeyboardInterrupt
        return {}

    outbox: Outbox[str] = Outbox(send)
    with ThreadPoolExecutor(8) as pool:
        first = [pool.submit(outbox.put, [name], 1, time.monotonic() + 60) for name in ("interrupted", "busy")]
        while len(sent) < 2:
            os.sched_yield()
        rest = [pool.submit(outbox.put, [f"r{i}"], 1, time.monotonic() + 60) for i in range(4)]
        while len(outbox._queue) < 4:
            os.sched_yield()
        gate.set()
        assert isinstance(first[0].exception(), KeyboardInterrupt)
        assert [future.result() for future in [first[1], *rest]] == [{}] * 5


def test_requests_keep_within_the_bounds_of_the_wire_api(service):
    assert default_client().create_tasks(prepared(2500)) == {}
    assert sorted(service.batch_sizes) == [500, 1000, 1000]
    big = encode_call(samples.record, ("x" * 30_000,), {})
    many = [calls.create_request("queues/default", NO_OPTIONS, big) for _ in range(300)]
    service.batch_sizes.clear()
    default_client().create_tasks(many)
    assert sum(service.batch_sizes) == 300
    assert max(service.batch_sizes) * 30_000 < calls.BATCH_BYTES_MAX


def test_nothing_is_sent_for_nothing(service):
    assert default_client().create_tasks([]) == {}
    assert service.calls == []


def test_refused_items_of_several_requests_keep_their_positions(service):
    requests = prepared(2000)
    requests[5] = prepared(1, "nowhere")[0]
    requests[1500] = prepared(1, "nowhere")[0]
    failures = default_client().create_tasks(requests)
    assert sorted(failures) == [5, 1500]
    assert len(service.tasks) == 1998


def test_large_batch_rides_out_an_unavailable_moment(service):
    service.faults += [status_of("UNAVAILABLE", "moving")] * 2
    assert default_client().create_tasks(prepared(3000)) == {}
    assert len(service.tasks) == 3000


# Names and administration


@pytest.mark.parametrize("name", ["mail", "queues/mail"])
def test_queue_names_may_be_short(service, name):
    client = default_client()
    client.create_queue(queue_pb2.Queue(name=name))
    assert client.get_queue(name).name == "queues/mail"
    assert [queue.name for queue in client.list_queues()] == ["queues/default", "queues/mail"]
    assert client.pause_queue(name).state == queue_pb2.QUEUE_STATE_PAUSED
    assert client.resume_queue(name).state == queue_pb2.QUEUE_STATE_RUNNING
    changed = queue_pb2.Queue(name=name)
    changed.retry_policy.max_attempts = 3
    assert client.update_queue(changed, ["retry_policy.max_attempts"]).retry_policy.max_attempts == 3
    assert client.queue_stats(name).ready_count == 0
    adjourn.defer(samples.add, 1, _queue="mail")
    with pytest.raises(adjourn.QueueNotEmpty):
        client.delete_queue(name)
    assert client.purge_queue(name) == 1
    client.delete_queue(name)
    with pytest.raises(adjourn.QueueNotFound):
        client.get_queue(name)


@pytest.mark.parametrize("name", ["default/tasks/x", "default/x", "queues/default/tasks/x"])
def test_task_names_may_be_short(service, name):
    client = default_client()
    adjourn.defer(samples.add, 1, _name="x", _countdown=60)
    assert client.get_task(name).name == "queues/default/tasks/x"
    assert client.run_task(name).status.state == task_pb2.TASK_STATE_READY
    assert client.cancel_task(name).status.state == task_pb2.TASK_STATE_CANCELLED
    with pytest.raises(adjourn.TaskStateError):
        client.cancel_task(name)
    assert client.wait_task(name, 5).status.state == task_pb2.TASK_STATE_CANCELLED
    assert client.retry_task(name).status.state == task_pb2.TASK_STATE_READY
    assert client.wait_task(name, 0).status.state == task_pb2.TASK_STATE_READY
    client.delete_task(name)
    with pytest.raises(adjourn.TaskNotFound):
        client.get_task(name)


@pytest.mark.parametrize("name", ["", "x", "a/b/c", "queues/a/tasks/", "queues/a_b/tasks/x", "a/tasks/x\n", None])
def test_malformed_task_name_is_refused_before_the_call(name):
    with pytest.raises(adjourn.OptionError, match="QUEUE/tasks/TASK"):
        default_client().get_task(name)


@pytest.mark.parametrize("name", ["", "a_b", "q\n", "queues/", "q" * 101, None])
def test_malformed_queue_name_is_refused_before_the_call(name):
    with pytest.raises(adjourn.OptionError, match="1 to 100 characters"):
        default_client().get_queue(name)


def test_lists_fetch_their_pages(service):
    with adjourn.batch():
        for i in range(10):
            adjourn.defer(samples.add, i, _tag="even" if i % 2 == 0 else "odd")
    client = default_client()
    assert [task.name for task in client.list_tasks("default")] == list(service.tasks)
    assert len(list(client.list_tasks("default", tag="odd", state="ready"))) == 5
    assert len(list(client.list_tasks(limit=4))) == 4
    assert list(client.list_tasks(state=task_pb2.TASK_STATE_DEAD, created_from=dt.datetime.now(dt.UTC))) == []
    with pytest.raises(adjourn.OptionError, match="scheduled, ready, leased"):
        list(client.list_tasks(state="running"))


# Processes


def test_import_loads_neither_grpc_nor_protobuf():
    probe = (
        "import sys, adjourn, adjourn.payload, adjourn.deferred\n"
        "@adjourn.task\n"
        "def f(): pass\n"
        "heavy = {'grpc', 'google', 'click', 'rich', 'uuid_utils'} & {name.split('.')[0] for name in sys.modules}\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", probe], check=True)


@pytest.fixture
def service_process() -> Iterator[str]:
    """A service in a process of its own; gives its target."""
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.client.fake_service"], cwd=root, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


# Each scenario runs in a fresh interpreter: forking the test runner, which holds servers and threads of other tests,
# would test the runner.
FORK_SCRIPT = """
import multiprocessing, os, sys, threading, warnings
import adjourn
from operator import add
adjourn.configure(target=sys.argv[1], timeout=20)

def child(connection=None):
    names = [adjourn.defer(add, 1, i).name for i in range(5)]
    threads = [threading.Thread(target=adjourn.defer, args=(add, 1, 2)) for _ in range(4)]
    [t.start() for t in threads]; [t.join() for t in threads]
    if connection: connection.send(names)

def by_os_fork():
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(); code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def by_multiprocessing():
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there,))
    process.start(); process.join()
    assert process.exitcode == 0
    assert len(here.recv()) == 5

adjourn.defer(add, 1, 2)
busy = threading.Event()
def hammer():
    while not busy.is_set(): adjourn.defer(add, 0, 0)
if 'threads' in sys.argv:
    hammers = [threading.Thread(target=hammer) for _ in range(2)]
    [t.start() for t in hammers]
for _ in range(4):
    {'os': by_os_fork, 'mp': by_multiprocessing}[sys.argv[2]]()
    adjourn.defer(add, 1, 2)
busy.set()
if 'threads' in sys.argv: [t.join() for t in hammers]
client = adjourn.Client()
tasks = list(client.list_tasks())
assert len({t.uid for t in tasks}) == len(tasks) >= 1 + 4 * (9 + 1), len(tasks)
"""


@pytest.mark.parametrize("threads", [(), ("threads",)], ids=["quiet", "busy"])
@pytest.mark.parametrize("how", ["os", "mp"])
def test_parent_and_forked_child_both_go_on(service_process, how, threads):
    subprocess.run([sys.executable, "-c", FORK_SCRIPT, service_process, how, *threads], check=True, timeout=60)


def test_forked_child_makes_other_uids():
    read, write = os.pipe()
    prepared()
    warnings_are_for_threads = multiprocessing.get_context("fork")
    process = warnings_are_for_threads.Process(
        target=lambda: os.write(write, " ".join(r.request_id for r in prepared(50)).encode())
    )
    process.start()
    ours = {request.request_id for request in prepared(50)}
    process.join()
    os.close(write)
    theirs = set(os.read(read, 100_000).decode().split())
    os.close(read)
    assert len(theirs) == 50
    assert not {uid[14:] for uid in ours} & {uid[14:] for uid in theirs}


def test_client_can_be_closed_and_used_again(service):
    with Client(service.target) as client:
        client.create_tasks(prepared())
    assert client.create_tasks(prepared()) == {}
    client.close()
