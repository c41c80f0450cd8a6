"""Measures adjourn on this machine: real processes, a store on disk, every acknowledged task durable.

    python -m tests.bench [--quick] [--only NAME ...] [--out build/bench.json]

Prints a table and writes all figures as flat keys. Machines are noisy: compare figures of one run.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psutil
import uuid_utils
from rich.console import Console
from rich.table import Table

import adjourn
from adjourn.client import Client
from adjourn.payload import encode_call
from adjourn.v1.lease_service_pb2 import OUTCOME_SUCCEEDED, LeaseRequest, QueueSelector, Settlement, SettleRequest
from adjourn.v1.lease_service_pb2_grpc import LeasesStub
from adjourn.v1.task_service_pb2 import CreateTaskRequest
from tests.bench import tasks
from tests.processes import ROOT, Service, Worker

Figures = dict[str, float]

CHILDREN = 2
BULK_BATCH = 1000
CYCLE_TASKS = 100
"""Tasks of one create-lease-settle cycle where the cost of operations is compared at two backlogs."""


class Usage:
    """CPU seconds that processes use from one moment to another."""

    def __init__(self, **pids: int) -> None:
        self._before = {name: (psutil.Process(pid), cpu_seconds(psutil.Process(pid))) for name, pid in pids.items()}

    def us_per_task(self, prefix: str, count: int) -> Figures:
        """Return microseconds of CPU for each task, by process."""
        return {
            f"{prefix}_{name}_cpu_us_per_task": (cpu_seconds(process) - before) / count * 1e6
            for name, (process, before) in self._before.items()
        }


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class Bench:
    """One service for each measurement, and the sizes of them."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.folder = folder
        self.scale = 10 if quick else 1
        self._services = 0

    def service(self, stack: ExitStack) -> tuple[Service, Client]:
        """Start a service on a new store, and make it the one that adjourn.defer uses."""
        self._services += 1
        folder = self.folder / f"service-{self._services}"
        folder.mkdir()
        service = stack.enter_context(Service(folder))
        adjourn.configure(target=service.target, timeout=120)
        return service, stack.enter_context(Client(service.target))

    def worker(self, stack: ExitStack, service: Service) -> Worker:
        """Start a worker and wait until its children run."""
        worker = stack.enter_context(Worker(service.folder, service.target, "--processes", str(CHILDREN)))
        round_trip = adjourn.defer(tasks.started_at, 0, _retain=60)
        round_trip.result(60)
        return worker

    # --- the measurements

    def bulk_create(self, stack: ExitStack) -> Figures:
        """Batches of 1,000 defers from one thread, each batch acknowledged after its fsync."""
        service, client = self.service(stack)
        count = 300_000 // self.scale
        defer_all(10_000)
        usage = Usage(service=service.pid, client=os.getpid())
        seconds = timed(lambda: defer_all(count))
        assert client.queue_stats("default").created_total == 10_000 + count
        return {"bulk_create_per_s": count / seconds, **usage.us_per_task("bulk_create", count)}

    def defer_sequential(self, stack: ExitStack) -> Figures:
        """One thread, one defer after the other."""
        self.service(stack)
        count = 5_000 // self.scale
        for number in range(100):
            adjourn.defer(tasks.nothing, number)
        latencies = [timed(partial(adjourn.defer, tasks.nothing, number)) * 1e3 for number in range(count)]
        p50, p99 = percentiles(latencies)
        return {"defer_sequential_per_s": 1e3 * count / sum(latencies), "defer_p50_ms": p50, "defer_p99_ms": p99}

    def defer_32_threads(self, stack: ExitStack) -> Figures:
        """Thirty-two threads that each defer one task after the other."""
        service, client = self.service(stack)
        each = 4_000 // self.scale

        def work() -> None:
            for number in range(each):
                adjourn.defer(tasks.nothing, number)

        threads = [threading.Thread(target=work) for _ in range(32)]
        usage = Usage(service=service.pid, client=os.getpid())

        def all_of_them() -> None:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        seconds = timed(all_of_them)
        assert client.queue_stats("default").created_total == 32 * each
        return {"defer_32_threads_per_s": 32 * each / seconds, **usage.us_per_task("defer_32_threads", 32 * each)}

    def drain(self, stack: ExitStack) -> Figures:
        """A backlog of no-ops through one worker with two children."""
        service, client = self.service(stack)
        worker = self.worker(stack, service)
        count = 300_000 // self.scale
        defer_all(20_000)
        self.until_empty(client)
        client.pause_queue("default")
        defer_all(count)
        main = psutil.Process(worker.pid)
        children = {f"child{index}": pid for index, pid in enumerate(worker.children())}
        usage = Usage(service=service.pid, main=worker.pid, **children)

        def drain() -> None:
            client.resume_queue("default")
            self.until_empty(client)

        seconds = timed(drain)
        assert client.queue_stats("default").failed_attempts_total == 0
        return {
            "drain_per_s": count / seconds,
            **usage.us_per_task("drain", count),
            "worker_rss_mb": sum(p.memory_info().rss for p in [main, *main.children()]) / 1e6,
        }

    def create_and_drain(self, stack: ExitStack) -> Figures:
        """Bulk creates and their execution at the same time, from the first create to the last settle."""
        service, client = self.service(stack)
        self.worker(stack, service)
        count = 200_000 // self.scale

        def both() -> None:
            defer_all(count)
            self.until_empty(client)

        return {"create_and_drain_per_s": count / timed(both)}

    def idle(self, stack: ExitStack) -> Figures:
        """From the call of defer to the first line of the task, when nothing else runs."""
        service, _ = self.service(stack)
        self.worker(stack, service)
        waits = []
        for number in range(1_000 // self.scale):
            called_at = time.time_ns()
            handle = adjourn.defer(tasks.started_at, number, _retain=60)
            waits.append((handle.result(60) - called_at) / 1e6)
        p50, p99 = percentiles(waits[len(waits) // 10 :])
        return {"idle_p50_ms": p50, "idle_p99_ms": p99}

    def backlog(self, stack: ExitStack) -> Figures:
        """The cost of operations, and the service's memory, at a backlog of 10,000 and of 1,000,000."""
        service, client = self.service(stack)
        process = psutil.Process(service.pid)
        small, large = 10_000, 1_000_000 // self.scale
        defer_all(small)
        at_small = self.cycle_us(service)
        rss_small = process.memory_info().rss / 1e6
        defer_all(large - small)
        at_large = self.cycle_us(service)
        stats_seconds = statistics.median(timed(lambda: client.queue_stats("default")) for _ in range(50))
        assert client.queue_stats("default").ready_count == large
        return {
            "service_rss_mb_at_10k": rss_small,
            "service_rss_mb_at_1m": process.memory_info().rss / 1e6,
            "cycle_us_per_task_at_10k": at_small,
            "cycle_us_per_task_at_1m": at_large,
            "cost_ratio_1m_vs_10k": at_large / at_small,
            "stats_ms_at_1m": stats_seconds * 1e3,
        }

    def cycle_us(self, service: Service) -> float:
        """Return the median time of creating, leasing and settling, in microseconds for each task."""
        import grpc  # Here, because adjourn decides how grpc is first imported.

        with Client(service.target) as client, grpc.insecure_channel(service.target) as channel:
            leases = LeasesStub(channel)
            lease = LeaseRequest(
                queues=[QueueSelector(queue="queues/default")], max_leases=CYCLE_TASKS, worker_id="bench"
            )

            def cycle() -> None:
                client.create_tasks([create_request(number) for number in range(CYCLE_TASKS)])
                leased = leases.Lease(lease).leases
                assert len(leased) == CYCLE_TASKS
                leases.Settle(
                    SettleRequest(
                        settlements=[Settlement(lease_id=each.lease_id, outcome=OUTCOME_SUCCEEDED) for each in leased]
                    )
                )

            for _ in range(20):
                cycle()
            return statistics.median(timed(cycle) for _ in range(200)) / CYCLE_TASKS * 1e6

    def until_empty(self, client: Client) -> None:
        """Wait until the default queue holds nothing live."""
        tick = threading.Event()
        while True:
            stats = client.queue_stats("default")
            if not (stats.ready_count or stats.leased_count or stats.scheduled_count):
                return
            tick.wait(0.01)


def create_request(number: int) -> CreateTaskRequest:
    request = CreateTaskRequest(parent="queues/default", request_id=str(uuid_utils.uuid7()))
    request.task.payload = encode_call(tasks.nothing, (number,), {}, None).payload
    return request


def defer_all(count: int) -> None:
    """Defer no-ops in batches of 1,000."""
    for first in range(0, count, 20 * BULK_BATCH):
        with adjourn.batch():
            for number in range(first, min(first + 20 * BULK_BATCH, count)):
                adjourn.defer(tasks.nothing, number)


def timed(what: Callable[[], object]) -> float:
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def percentiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


MEASUREMENTS = ["bulk_create", "defer_sequential", "defer_32_threads", "drain", "create_and_drain", "idle", "backlog"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=MEASUREMENTS)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json")
    parser.add_argument("--folder", type=Path, help="where the stores lie; the disk that is measured")
    options = parser.parse_args()
    console = Console()
    figures: Figures = {}
    # Not on /tmp by default, which is memory on many machines: the fsync is part of what is measured.
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder or options.out.parent) as folder:
        bench = Bench(Path(folder), quick=options.quick)
        for name in options.only:
            with ExitStack() as stack, console.status(name):
                figures |= getattr(bench, name)(stack)
    table = Table(
        "figure", "value", title=f"adjourn {version('adjourn')}, {platform.machine()}, {os.cpu_count()} cores"
    )
    for key, value in figures.items():
        table.add_row(key, f"{value:,.2f}" if value < 100 else f"{value:,.0f}")
    console.print(table)
    options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
