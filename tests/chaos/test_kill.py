"""Kill everything, again and again, under load; then count."""

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

import adjourn
from adjourn.client import Client
from adjourn.v1.queue_pb2 import Queue
from adjourn.v1.task_pb2 import TASK_STATE_SUCCEEDED
from tests.chaos import tasks
from tests.processes import Service, Worker

TASKS = 20_000
BATCH = 100
KILLS = ["service", "worker", "child"] * 4
"""Twelve, shuffled."""


class Producer(threading.Thread):
    """Defers numbered tasks, batch after batch, and notes which of them were acknowledged."""

    def __init__(self, runs: Path) -> None:
        super().__init__()
        self.runs = runs
        self.acknowledged = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            for first in range(0, TASKS, BATCH):
                with adjourn.batch():
                    for number in range(first, first + BATCH):
                        adjourn.defer(
                            tasks.record, str(self.runs), number, _queue="chaos", _tag=str(number), _retain=3600
                        )
                self.acknowledged += BATCH
        except Exception as error:  # noqa: BLE001 - told to the test's own thread
            self.failure = error


def wait_until(reached, what: str, seconds: float = 120) -> None:
    """Wait for a state of other processes that gives no other sign than being looked at."""
    end = time.monotonic() + seconds
    tick = threading.Event()
    while not reached():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        tick.wait(0.02)


@pytest.mark.timeout(280)
def test_nothing_acknowledged_is_lost_whatever_is_killed(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    kills = random.Random(seed).sample(KILLS, len(KILLS))
    runs = tmp_path / "runs"
    runs.mkdir()
    with (
        Service(tmp_path) as service,
        Client(service.target) as client,
        Worker(tmp_path, service.target, "--processes", "2", "--queue", "chaos") as worker,
    ):
        client.create_queue(Queue(name="queues/chaos", lease_duration=Duration(seconds=2)))
        adjourn.configure(target=service.target, timeout=60)
        producer = Producer(runs)
        producer.start()
        for count, victim in enumerate(kills, 1):
            # Spread over the run: each kill falls into a moment at which tasks are made and run.
            due = count * TASKS // (len(kills) + 1)
            wait_until(lambda due=due: len(tasks.runs(runs)) >= due or producer.failure, f"{due} runs, seed {seed}")
            assert producer.failure is None
            kill(victim, service, worker)
        producer.join(120)
        assert not producer.is_alive()
        assert producer.failure is None

        def idle() -> bool:
            stats = client.queue_stats("chaos")
            return not (stats.scheduled_count or stats.ready_count or stats.leased_count)

        wait_until(idle, f"everything settled, seed {seed}")
        assert worker.stop() == 0
        check(client, Counter(tasks.runs(runs)), producer.acknowledged)
        assert service.stop() == 0


def kill(victim: str, service: Service, worker: Worker) -> None:
    match victim:
        case "service":
            service.kill()
            service.wait()
            service.start()
        case "worker":
            worker.kill()
            worker.wait()
            worker.start()
        case "child":
            wait_until(worker.children, "the worker has children")
            os.kill(random.choice(worker.children()), signal.SIGKILL)


def check(client: Client, ran: Counter[int], acknowledged: int) -> None:
    """Every acknowledged task ran and succeeded, and whatever ran again has as many recorded causes."""
    assert acknowledged == TASKS
    lost = [number for number in range(TASKS) if not ran[number]]
    assert lost == []
    stats = client.queue_stats("chaos")
    assert stats.created_total == stats.succeeded_total == stats.retained_count == TASKS
    assert stats.dead_total == 0
    again = causes = 0
    for task in client.list_tasks("chaos"):
        number, attempts = int(task.tag), task.status.attempts
        assert task.status.state == TASK_STATE_SUCCEEDED
        assert all(attempt.error.type for attempt in attempts)
        assert ran[number] - 1 <= len(attempts), f"{task.name} ran {ran[number]} times for {len(attempts)} causes"
        again += ran[number] - 1
        causes += len(attempts)
    print(f"{sum(ran.values())} runs of {TASKS} tasks, {again} of them again; {causes} failed attempts recorded")
