"""What a worker can be told."""

from __future__ import annotations

import os
import re
import secrets
import socket
from dataclasses import dataclass, field
from typing import Final

PREFETCH_MAX: Final = 100_000
"""As many leases as one hello can claim."""

_QUEUE = re.compile(r"-|[A-Za-z0-9-]{1,100}")
_WORKER_ID_CHARS_MAX: Final = 200


def new_worker_id() -> str:
    """Return a name that no worker process has had before: host, process id and four random bytes."""
    suffix = f"-{os.getpid()}-{secrets.token_hex(4)}"
    return socket.gethostname()[: _WORKER_ID_CHARS_MAX - len(suffix)] + suffix


@dataclass(frozen=True)
class WorkerConfig:
    """Configuration of one worker process. Raises: ValueError, naming every fault."""

    target: str = "localhost:7766"
    """Where the service listens, as `host:port`."""
    queues: tuple[str, ...] = ("-",)
    """Names of the queues to serve, taken in turn; `-` stands for all, also those made later. 1 to 100."""
    modules: tuple[str, ...] = ()
    """Imported by each child before its first task, so that no task pays for it."""
    main_file: str | None = None
    """The script whose `__main__` the tasks were pickled in; each child runs it as `__mp_main__`."""
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Children, each of which runs one task at a time. Default: one for each core."""
    prefetch: int = 1024
    """Most unfinished leases to hold or ask for. Reached only with tasks of microseconds: see pace.supply."""
    grace_seconds: float = 30.0
    """How long running tasks may go on after SIGTERM. Keep it below Kubernetes' terminationGracePeriodSeconds."""
    log_level: str = "INFO"
    """Level of the root logger of each child."""
    worker_id: str = field(default_factory=new_worker_id)
    """Name of this process, new with every start."""

    def __post_init__(self) -> None:
        faults = [
            fault
            for wrong, fault in (
                (not self.target, "target must be host:port"),
                (not 1 <= len(self.queues) <= 100, "queues must be 1 to 100 names"),
                *(
                    (not _QUEUE.fullmatch(queue), f"queue {queue!r} must have 1 to 100 characters of A-Z a-z 0-9 -")
                    for queue in self.queues
                ),
                (not 1 <= self.processes <= 1000, f"processes must be 1 to 1,000, not {self.processes}"),
                (
                    not 1 <= self.prefetch <= PREFETCH_MAX,
                    f"prefetch must be 1 to {PREFETCH_MAX:,}, not {self.prefetch}",
                ),
                (self.grace_seconds < 0, f"grace must be 0 or more seconds, not {self.grace_seconds}"),
            )
            if wrong
        ]
        if faults:
            raise ValueError("; ".join(faults))
