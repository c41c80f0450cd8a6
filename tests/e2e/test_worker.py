"""`adjourn worker` as a process, against a service that breaks when told to. Signals and crashes are real."""

import asyncio
import contextlib
import os
import select
import signal
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
from tests.unit.worker import tasks
from tests.unit.worker.fake_service import FakeService, Task

from adjourn.v1 import lease_service_pb2 as pb

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from adjourn.worker.cli import worker; worker()")


class Worker:
    """One worker process and its log."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self):
        return self._log.read_text()

    def children(self):
        return psutil.Process(self.process.pid).children()

    def signal(self, number):
        self.process.send_signal(number)

    async def logged(self, text):
        """Wait until the worker has logged `text`."""
        while text not in self.log:  # noqa: ASYNC110 - the log is a file, which has no event.
            await asyncio.sleep(0.01)

    async def end(self):
        """Wait for the end; return the exit status."""
        return await self.process.wait()


class Pipes:
    """Two named pipes: by one a task tells its pid, at the other it waits."""

    def __init__(self, folder: Path) -> None:
        self.told, self.gate = folder / "told", folder / "gate"
        os.mkfifo(self.told)
        os.mkfifo(self.gate)

    @property
    def call(self):
        return tasks.tell_pid_and_wait, str(self.told), str(self.gate)

    async def pid(self):
        return int(await asyncio.to_thread(self.told.read_text))

    async def open_gate(self):
        await asyncio.to_thread(self.gate.write_text, "go")


@pytest.fixture
def pipes(tmp_path):
    return Pipes(tmp_path)


@pytest.fixture
async def service():
    service = FakeService()
    await service.start()
    yield service
    await service.crash()


@pytest.fixture
async def start_worker(service, tmp_path):
    workers: list[Worker] = []

    async def start(*options):
        log = tmp_path / f"worker-{len(workers)}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                "--target",
                service.target,
                *options,
                stdin=asyncio.subprocess.DEVNULL,
                stderr=stderr,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{ROOT}"},
            )
        workers.append(Worker(process, log))
        return workers[-1]

    yield start
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            worker.process.kill()
        await worker.process.wait()


def outcomes(deferred: list[Task]) -> Counter[str]:
    return Counter(pb.Outcome.Name(end.outcome) for task in deferred for end in task.ends)


async def gone(pid: int) -> None:
    """Wait until the process has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await asyncio.to_thread(select.select, [fd], [], [])
    finally:
        os.close(fd)


async def test_tasks_are_run_and_settled(service, start_worker):
    worker = await start_worker("-p", "2")
    deferred = service.defer_many(2000, tasks.noop)
    kept = service.defer(tasks.add, 1, 2, keep_result=True)
    dead = service.defer(tasks.raise_permanent)
    await service.settled()
    assert outcomes(deferred) == {"OUTCOME_SUCCEEDED": 2000}
    assert kept.last.result
    assert dead.last.outcome == pb.OUTCOME_FAILED
    assert "for good" in dead.last.error.traceback
    assert service.hellos[0].queues[0].queue == "queues/-"
    worker.signal(signal.SIGTERM)
    assert await worker.end() == 0


async def test_messages_are_few_under_load(service, start_worker):
    await start_worker("-p", "2")
    service.defer_many(5000, tasks.noop)
    await service.settled()
    assert service.requests < 1000


async def test_a_restart_of_the_service_under_load_loses_and_repeats_nothing(service, start_worker, tmp_path):
    path = tmp_path / "ran"
    await start_worker("-p", "2")
    deferred = [service.defer(tasks.append, str(path), number) for number in range(3000)]
    for hellos, ended in enumerate((300, 1200, 2100), 2):
        await service.until(lambda least=ended: sum(len(task.ends) for task in deferred) >= least)
        await service.crash()
        await service.start()
        await service.until(lambda least=hellos: len(service.hellos) >= least)
    await service.settled()
    ran = Counter(map(int, path.read_text().split()))
    assert set(ran) == set(range(3000))
    # Leases that were pushed into a breaking stream were never started and were released by the next hello.
    assert set(ran.values()) == {1}
    assert outcomes(deferred)["OUTCOME_SUCCEEDED"] == 3000
    assert {hello.worker_id for hello in service.hellos} == {service.hellos[0].worker_id}


async def test_a_lost_connection_is_logged_once(service, start_worker):
    worker = await start_worker("-p", "1")
    await worker.logged(" connected")
    await service.crash()
    await worker.logged("connection lost")
    await service.start()
    await worker.logged("reconnected")
    assert worker.log.count("connection lost") == worker.log.count("reconnected") == 1


async def test_a_settlement_whose_acknowledgement_was_lost_is_sent_again_and_then_dropped(service, start_worker):
    service.ignore_acks = True
    await start_worker("-p", "1")
    task = service.defer(tasks.noop)
    await service.settled()
    await service.crash()
    service.ignore_acks = False
    await service.start()
    await service.until(lambda: service.refused)
    assert len(service.refused) == 1
    assert service.hellos[-1].held_lease_ids == service.refused
    later = service.defer(tasks.noop)
    await service.settled()
    assert outcomes([task, later]) == {"OUTCOME_SUCCEEDED": 2}


async def test_leases_of_running_tasks_are_renewed(service, start_worker, pipes):
    service.lease_seconds = 1
    await start_worker("-p", "1")
    task = service.defer(*pipes.call)
    await pipes.pid()
    await service.until(lambda: service.renewals >= 6)
    await pipes.open_gate()
    await service.settled()
    assert task.attempts == 1
    assert outcomes([task]) == {"OUTCOME_SUCCEEDED": 1}


async def test_nothing_is_settled_of_a_lost_lease(service, start_worker, pipes):
    service.lease_seconds = 1
    worker = await start_worker("-p", "1")
    task = service.defer(*pipes.call)
    await pipes.pid()
    service.leases.clear()
    await worker.logged("lease lost")
    await pipes.open_gate()
    after = service.defer(tasks.noop)
    await service.settled()
    assert task.ends == []
    assert service.refused == []
    assert outcomes([after]) == {"OUTCOME_SUCCEEDED": 1}


async def test_a_cancelled_task_that_waits_is_not_run(service, start_worker, pipes, tmp_path):
    path = tmp_path / "ran"
    worker = await start_worker("-p", "1")
    service.defer(*pipes.call)
    await pipes.pid()
    waiting = service.defer(tasks.append, str(path), "cancelled")
    await service.until(lambda: service.leased(waiting))
    service.cancel(waiting)
    await worker.logged("lease cancelled")
    await pipes.open_gate()
    await service.settled()
    assert waiting.ends == []
    # It may have been with the child by then, in which case it ran and its end was dropped.
    assert service.refused == []


async def test_a_killed_child_is_replaced_and_its_task_recorded(service, start_worker, pipes):
    await start_worker("-p", "1")
    task = service.defer(*pipes.call)
    os.kill(await pipes.pid(), signal.SIGKILL)
    await service.until(lambda: task.ends)
    assert (task.last.outcome, task.last.error.type) == (pb.OUTCOME_CRASHED, "SIGKILL")
    await pipes.pid()
    await pipes.open_gate()
    await service.settled()
    assert outcomes([task]) == {"OUTCOME_CRASHED": 1, "OUTCOME_SUCCEEDED": 1}


async def test_children_do_not_outlive_a_killed_worker(service, start_worker, pipes):
    worker = await start_worker("-p", "2")
    service.defer(*pipes.call)
    await pipes.pid()
    pids = [child.pid for child in worker.children()]
    assert len(pids) == 2
    worker.signal(signal.SIGKILL)
    await worker.end()
    for pid in pids:
        await gone(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_draining_ends_what_runs_and_gives_back_the_rest(service, start_worker, pipes, number):
    worker = await start_worker("-p", "1")
    running = service.defer(*pipes.call)
    await pipes.pid()
    rest = service.defer_many(50, tasks.noop)
    await service.until(lambda: any(service.leased(task) for task in rest))
    worker.signal(number)
    await service.until(lambda: service.leased_names() == {running.name})
    assert running.ends == []
    await pipes.open_gate()
    assert await worker.end() == 0
    assert outcomes([running]) == {"OUTCOME_SUCCEEDED": 1}
    assert set(outcomes(rest)) == {"OUTCOME_RELEASED"}
    assert [task.attempts for task in rest] == [0] * 50
    assert service.leases == {}


async def test_a_signal_to_the_whole_group_drains_like_one_to_the_worker(service, start_worker, pipes):
    worker = await start_worker("-p", "1")
    running = service.defer(*pipes.call)
    pid = await pipes.pid()
    worker.signal(signal.SIGINT)
    os.kill(pid, signal.SIGINT)
    await worker.logged("draining")
    await pipes.open_gate()
    assert await worker.end() == 0
    assert outcomes([running]) == {"OUTCOME_SUCCEEDED": 1}


async def test_after_the_grace_time_running_tasks_are_released_uncounted(service, start_worker, pipes):
    worker = await start_worker("-p", "1", "--grace", "0.1")
    task = service.defer(*pipes.call)
    await pipes.pid()
    worker.signal(signal.SIGTERM)
    assert await worker.end() == 0
    assert outcomes([task]) == {"OUTCOME_RELEASED": 1}
    assert task.attempts == 0


async def test_a_second_signal_ends_the_draining(service, start_worker, pipes):
    worker = await start_worker("-p", "1", "--grace", "1000")
    task = service.defer(*pipes.call)
    await pipes.pid()
    worker.signal(signal.SIGTERM)
    await worker.logged("draining")
    worker.signal(signal.SIGTERM)
    assert await worker.end() == 0
    assert outcomes([task]) == {"OUTCOME_RELEASED": 1}


async def test_without_a_service_it_says_so_once_and_goes_on_trying(service, start_worker):
    await service.crash()
    worker = await start_worker("-p", "1")
    await worker.logged("no service at")
    task = service.defer(tasks.noop)
    await service.start()
    await service.settled()
    assert outcomes([task]) == {"OUTCOME_SUCCEEDED": 1}
    assert worker.log.count("no service at") == 1
    assert "adjourn serve" in worker.log


async def test_without_a_service_it_stops_when_told(service, start_worker):
    await service.crash()
    worker = await start_worker("-p", "1")
    await worker.logged("no service at")
    worker.signal(signal.SIGTERM)
    assert await worker.end() == 0
    assert "Traceback" not in worker.log


async def test_a_long_task_holds_up_no_short_ones(service, start_worker, pipes):
    await start_worker("-p", "2")
    # By these the worker learns to hand over many at a time.
    service.defer_many(1000, tasks.noop)
    await service.settled()
    long = service.defer(*pipes.call)
    short = service.defer_many(1000, tasks.noop)
    await pipes.pid()
    await service.until(lambda: service.leased_names() == {long.name} and not service.ready)
    assert outcomes(short)["OUTCOME_SUCCEEDED"] == 1000
    await pipes.open_gate()
    await service.settled()


async def test_two_workers_share_long_tasks(service, start_worker, tmp_path):
    """Leases that one worker holds in vain reach the other: all of them would fit into the credit of short tasks."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    first = await start_worker("-p", "1")
    service.defer_many(2000, tasks.noop)
    await service.settled()
    long = service.defer(tasks.wait_for, str(gate))
    rest = service.defer_many(200, tasks.noop)
    await service.until(lambda: service.leased(rest[-1]))
    await start_worker("-p", "1")
    await service.until(lambda: not service.ready and service.leased_names() == {long.name})
    assert outcomes(rest)["OUTCOME_SUCCEEDED"] == 200
    await asyncio.to_thread(gate.write_text, "go")
    await service.settled()
    assert len(first.children()) == 1
