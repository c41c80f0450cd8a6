"""Real children, killed in every way: each task is accounted for exactly once."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adjourn.payload import decode_result, encode_call
from adjourn.worker.held_lease import HeldLease
from adjourn.worker.outcome import Outcome, OutcomeKind
from adjourn.worker.pool import Pool
from adjourn.worker.settings import ChildSettings

from . import tasks


class Sink:
    """Takes what the pool settles and lets a test wait for it."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Any] = {}
        self.settlements: Counter[str] = Counter()
        self._changed = asyncio.Event()

    def succeeded(self, leases):
        for lease in leases:
            self._note(lease, OutcomeKind.SUCCEEDED)

    def settled(self, lease, outcome):
        self._note(lease, outcome)

    def dropped(self, leases):
        for lease in leases:
            self._note(lease, None)

    def target_changed(self):
        self._changed.set()

    def _note(self, lease: HeldLease, outcome: Outcome | OutcomeKind | None) -> None:
        self.outcomes[lease.lease_id] = outcome
        self.settlements[lease.lease_id] += 1
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def have(self, leases):
        await self.until(lambda: all(lease.lease_id in self.outcomes for lease in leases))
        return [self.outcomes[lease.lease_id] for lease in leases]

    def kinds(self, leases):
        outcomes = (self.outcomes[lease.lease_id] for lease in leases)
        return [outcome if isinstance(outcome, OutcomeKind) else OutcomeKind(outcome.kind) for outcome in outcomes]


class Bench:
    """A pool and its sink, and leases made up for it."""

    def __init__(self, processes: int, **settings: Any) -> None:
        self.sink = Sink()
        self.pool = Pool(ChildSettings(**settings), processes, 1024, "worker-1", self.sink)
        self._number = 0

    def lease(self, function, *args, keep_result=False, payload=None):
        self._number += 1
        if payload is None:
            payload = encode_call(function, args, {}).payload
        name = f"queues/q/tasks/t{self._number}"
        frame = (f"lease-{self._number}", name, 1, payload, keep_result, None, "", "", "", "")
        return HeldLease(frame[0], 60, frame)

    async def ready(self, count):
        await self.sink.until(lambda: len(self.pool._ready) == count)

    def pids(self):
        return [child.pid for child in self.pool._children]


@pytest.fixture
async def start():
    started = []

    async def begin(processes, **settings):
        bench = Bench(processes, **settings)
        started.append((bench, asyncio.create_task(bench.pool.run())))
        return bench

    yield begin
    for bench, running in started:
        bench.pool.discard()
        await running
        assert max(bench.sink.settlements.values(), default=1) == 1


@pytest.fixture
async def one(start):
    bench = await start(1)
    await bench.ready(1)
    return bench


@pytest.fixture
async def two(start):
    bench = await start(2)
    await bench.ready(2)
    return bench


class Pipes:
    """Two named pipes: by one a task tells its pid, at the other it waits."""

    def __init__(self, folder: Path) -> None:
        self.told, self.gate = folder / "told", folder / "gate"
        os.mkfifo(self.told)
        os.mkfifo(self.gate)

    async def pid(self):
        return int(await asyncio.to_thread(self.told.read_text))

    async def open_gate(self):
        await asyncio.to_thread(self.gate.write_text, "go")


@pytest.fixture
def pipes(tmp_path):
    return Pipes(tmp_path)


def give_behind(bench: Bench, leases: list[HeldLease]) -> None:
    """Have the only child hold all of the leases at once."""
    bench.pool._pace.seconds = 0.00002
    bench.pool.accept(leases)


async def test_outcomes_of_all_kinds_come_back(two):
    leases = [
        two.lease(tasks.noop),
        two.lease(tasks.add, 1, 2, keep_result=True),
        two.lease(tasks.add_slowly, 1, 2),
        two.lease(tasks.raise_error),
        two.lease(tasks.raise_permanent),
        two.lease(tasks.noop),
    ]
    two.pool.accept(leases)
    await two.sink.have(leases)
    ok, retry, failed = OutcomeKind.SUCCEEDED, OutcomeKind.RETRY, OutcomeKind.FAILED
    assert two.sink.kinds(leases) == [ok, ok, ok, retry, failed, ok]
    assert decode_result(two.sink.outcomes["lease-2"].result) == 3


async def test_thousands_of_tasks_are_each_settled_once(two):
    leases = [two.lease(tasks.noop) if n % 7 else two.lease(tasks.raise_singular) for n in range(3000)]
    two.pool.accept(leases)
    await two.sink.have(leases)
    assert Counter(two.sink.kinds(leases)) == {OutcomeKind.SUCCEEDED: 2571, OutcomeKind.RETRY: 429}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_killed_child_costs_only_the_task_it_ran(one, pipes, number):
    before = [one.lease(tasks.noop) for _ in range(5)]
    failing = one.lease(tasks.raise_error)
    victim = one.lease(tasks.tell_pid_and_wait, str(pipes.told), str(pipes.gate))
    after = [one.lease(tasks.noop) for _ in range(10)]
    give_behind(one, [*before, failing, victim, *after])
    os.kill(await pipes.pid(), number)
    await one.sink.have([*before, failing, victim, *after])
    assert set(one.sink.kinds([*before, *after])) == {OutcomeKind.SUCCEEDED}
    assert one.sink.kinds([failing, victim]) == [OutcomeKind.RETRY, OutcomeKind.CRASHED]
    crash = one.sink.outcomes[victim.lease_id]
    assert crash.error_type == number.name
    assert "worker-1" in crash.error_message


@pytest.mark.parametrize(
    ("function", "args", "cause"),
    [
        (tasks.exit_at_once, (3,), "exit status 3"),
        (tasks.exit_at_once, (0,), "exit status 0"),
        (tasks.segfault, (), "SIGSEGV"),
        (tasks.kill_self, (), "SIGKILL"),
    ],
)
async def test_a_task_that_takes_its_process_down_is_a_crash(one, function, args, cause):
    leases = [one.lease(tasks.noop), one.lease(function, *args), one.lease(tasks.noop)]
    give_behind(one, leases)
    outcomes = await one.sink.have(leases)
    assert one.sink.kinds(leases) == [OutcomeKind.SUCCEEDED, OutcomeKind.CRASHED, OutcomeKind.SUCCEEDED]
    assert outcomes[1].error_type == cause


async def test_random_kills_lose_nothing_and_repeat_nothing(two, tmp_path):
    path = tmp_path / "ran"
    leases = [two.lease(tasks.append, str(path), n) for n in range(2000)]
    two.pool.accept(leases)
    for threshold in (100, 500, 900, 1300, 1700):
        await two.sink.until(lambda least=threshold: len(two.sink.outcomes) >= least)
        two.pool._ready[0].kill()
        await two.ready(2)
    await two.sink.have(leases)
    ran = Counter(map(int, path.read_text().split()))
    kinds = two.sink.kinds(leases)
    assert kinds.count(OutcomeKind.CRASHED) <= 5
    assert kinds.count(OutcomeKind.SUCCEEDED) + kinds.count(OutcomeKind.CRASHED) == 2000
    assert max(ran.values()) == 1
    assert all(ran[n] == 1 for n, kind in enumerate(kinds) if kind == OutcomeKind.SUCCEEDED)


async def test_tasks_behind_a_long_one_move_to_a_free_child(two, pipes):
    two.pool._pace.seconds = 0.00002
    first, second = two.pool._ready
    long = two.lease(tasks.wait_for, str(pipes.gate))
    short = [two.lease(tasks.noop) for _ in range(20)]
    first.give([long, *short])
    two.pool.accept([two.lease(tasks.noop)])
    await two.sink.have(short)
    assert first.load == 1
    assert second.load == 0
    await pipes.open_gate()
    await two.sink.have([long])


async def test_tasks_behind_a_long_one_move_to_a_busy_child_that_gets_on(two, pipes):
    two.pool._pace.seconds = 0.00002
    long = two.lease(tasks.wait_for, str(pipes.gate))
    short = [two.lease(tasks.noop) for _ in range(20)]
    two.pool._ready[0].give([long, *short])
    stream = [two.lease(tasks.pause, 0.001) for _ in range(2000)]
    two.pool.accept(stream)
    await two.sink.have(short)
    assert stream[-1].lease_id not in two.sink.outcomes
    await pipes.open_gate()


async def test_leases_that_all_children_are_too_busy_for_go_back(one, pipes, monkeypatch):
    monkeypatch.setattr("adjourn.worker.pace.HOARDED_SECONDS", 0.02)
    one.pool._pace.seconds = 0.03
    long = one.lease(tasks.wait_for, str(pipes.gate))
    waiting = [one.lease(tasks.noop) for _ in range(50)]
    one.pool.accept([long, *waiting])
    await one.sink.until(lambda: len(one.sink.outcomes) >= 40)
    assert set(one.sink.kinds([lease for lease in waiting if lease.lease_id in one.sink.outcomes])) == {
        OutcomeKind.RELEASED
    }
    await pipes.open_gate()
    await one.sink.have([long, *waiting])


async def test_children_without_time_on_the_processor_are_not_taken_for_stuck_for_ever(two, monkeypatch):
    monkeypatch.setattr("adjourn.worker.pace.STALLED_SECONDS", 0.001)
    monkeypatch.setattr("adjourn.worker.pace.HOARDED_SECONDS", 0.005)
    monkeypatch.setattr("adjourn.worker.pace.LOOK_SECONDS", 0.005)
    two.pool._pace.seconds = 0.00002
    for pid in two.pids():
        os.kill(pid, signal.SIGSTOP)
    stopped = [two.lease(tasks.noop) for _ in range(100)]
    two.pool.accept(stopped)
    while not two.pool._stuck_seconds:  # noqa: ASYNC110 - a timer of the pool is awaited.
        await asyncio.sleep(0.001)
    monkeypatch.undo()
    for pid in two.pids():
        os.kill(pid, signal.SIGCONT)
    await two.sink.have(stopped)
    later = [two.lease(tasks.noop) for _ in range(100)]
    two.pool.accept(later)
    await two.sink.have(later)
    assert set(two.sink.kinds(later)) == {OutcomeKind.SUCCEEDED}


async def test_revoked_leases_that_wait_are_dropped(one, pipes):
    one.pool._pace.seconds = 1.0
    long, lost, kept = one.lease(tasks.wait_for, str(pipes.gate)), one.lease(tasks.noop), one.lease(tasks.noop)
    one.pool.accept([long, lost, kept])
    one.pool.revoke([lost])
    assert one.sink.outcomes == {lost.lease_id: None}
    await pipes.open_gate()
    await one.sink.have([long, kept])


async def test_draining_ends_what_runs_and_releases_the_rest(one, pipes):
    running = one.lease(tasks.tell_pid_and_wait, str(pipes.told), str(pipes.gate))
    behind = [one.lease(tasks.noop) for _ in range(200)]
    give_behind(one, [running, *behind])
    await pipes.pid()
    draining = asyncio.create_task(one.pool.drain())
    await one.sink.have(behind)
    assert set(one.sink.kinds(behind)) == {OutcomeKind.RELEASED}
    late = one.lease(tasks.noop)
    one.pool.accept([late])
    assert one.sink.kinds([late]) == [OutcomeKind.RELEASED]
    await pipes.open_gate()
    await draining
    assert one.sink.kinds([running]) == [OutcomeKind.SUCCEEDED]


async def test_an_attempt_that_a_shutdown_ends_is_released(one, pipes):
    running = one.lease(tasks.tell_pid_and_wait, str(pipes.told), str(pipes.gate))
    one.pool.accept([running])
    await pipes.pid()
    one.pool.discard()
    await one.sink.have([running])
    assert one.sink.kinds([running]) == [OutcomeKind.RELEASED]


async def test_a_module_that_cannot_be_imported_is_named_and_tried_again(start, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "broken_module.py"
    module.write_text("import not_installed_anywhere\n")
    bench = await start(1, modules=["broken_module"])
    lease = bench.lease(tasks.noop)
    bench.pool.accept([lease])
    await bench.sink.have([lease])
    assert bench.sink.kinds([lease]) == [OutcomeKind.RELEASED]
    assert bench.pool.target == 0
    assert "cannot import 'broken_module'" in caplog.text
    assert "No module named 'not_installed_anywhere'" in caplog.text
    module.write_text("")
    await bench.ready(1)


SCRIPT = """
import sys
from adjourn.payload import encode_call

def double(n):
    return 2 * n

if __name__ == "__main__":
    sys.stdout.buffer.write(encode_call(double, (21,), {}, main=__file__).payload)
"""


async def test_functions_of_a_main_file_are_found(start, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), stdout=subprocess.PIPE)
    payload, _ = await process.communicate()
    bench = await start(1, main_file=str(script))
    lease = bench.lease(None, payload=payload, keep_result=True)
    bench.pool.accept([lease])
    (outcome,) = await bench.sink.have([lease])
    assert decode_result(outcome.result) == 42


async def test_a_task_that_forks_ends_once(one, tmp_path):
    path = tmp_path / "ran"
    leases = [one.lease(tasks.fork_and_return, str(path)), one.lease(tasks.append, str(path), "next")]
    give_behind(one, leases)
    await one.sink.have(leases)
    assert one.sink.kinds(leases) == [OutcomeKind.SUCCEEDED, OutcomeKind.SUCCEEDED]
    assert sorted(path.read_text().split()) == ["fork", "next", "original"]


async def test_signals_of_the_terminal_do_not_reach_the_tasks(one, pipes):
    lease = one.lease(tasks.tell_pid_and_wait, str(pipes.told), str(pipes.gate))
    one.pool.accept([lease])
    pid = await pipes.pid()
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    await pipes.open_gate()
    await one.sink.have([lease])
    assert one.sink.kinds([lease]) == [OutcomeKind.SUCCEEDED]


async def test_a_child_imports_neither_grpc_nor_protobuf(one):
    lease = one.lease(tasks.imported, keep_result=True)
    one.pool.accept([lease])
    (outcome,) = await one.sink.have([lease])
    assert not {"grpc", "google"} & set(decode_result(outcome.result))
