"""What came of the demo, counted from the files that the tasks left behind and from what the service says."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adjourn.v1.task_pb2 import Task, TaskState
from adjourn_service.demo.tasks import REPORTS, RUNS


@dataclass(frozen=True)
class Retried:
    """A task that needed more than one attempt, or died."""

    name: str
    state: str
    causes: tuple[str, ...]
    """Why each attempt that did not succeed ended, as the service recorded it."""


@dataclass(frozen=True)
class Tally:
    """The counts. All but `attempts_recorded` and `retried` come from files."""

    tasks: int
    """Files to parse."""
    attempts: int
    """Runs of the task that began, each of which left a record."""
    attempts_recorded: int
    """Attempts that the service counted."""
    duplicates: int
    """Files that were run more than once."""
    lost: int
    """Files without a report."""
    seconds: float
    retried: tuple[Retried, ...]
    reports: Sequence[dict[str, Any]]

    def figures(self) -> dict[str, float]:
        """Return the line for programs."""
        return {
            "tasks": self.tasks,
            "attempts": self.attempts,
            "duplicates": self.duplicates,
            "lost": self.lost,
            "tasks_per_second": round(self.tasks / self.seconds, 1),
        }

    def lines(self) -> Iterator[str]:
        """Yield the summary for people."""
        parsed = [report for report in self.reports if report["parsed"]]
        imports = Counter(name for report in parsed for name in report["imports"])
        rate = self.tasks / self.seconds
        yield f"tasks       {self.tasks:,} in {self.seconds:.1f} s, {rate:,.0f} a second"
        yield f"attempts    {self.attempts:,} began; the service counted {self.attempts_recorded:,}"
        yield f"duplicates  {self.duplicates:,} (files run more than once)"
        yield f"lost        {self.lost:,} (files without a report)"
        for task in self.retried:
            yield f"retried     {task.name}: {', '.join(task.causes) or 'no cause recorded'}; then {task.state}"
        yield (
            f"found       {sum(report['lines'] for report in parsed):,} lines,"
            f" {sum(report['functions'] for report in parsed):,} functions,"
            f" {sum(report['classes'] for report in parsed):,} classes;"
            f" {len(self.reports) - len(parsed):,} files that are no valid Python"
        )
        most = ", ".join(f"{name} ({files:,})" for name, files in imports.most_common(3))
        yield f"            imported by the most files: {most or 'none'}"


def count(names: Mapping[str, str], folder: Path, tasks: Sequence[Task], seconds: float) -> Tally:
    """Count the files in the folder against `names`, the files to be parsed by the uids of their tasks."""
    runs = Counter(path.name.partition(".")[0] for path in (folder / RUNS).iterdir())
    reports = {path.stem: json.loads(path.read_text()) for path in (folder / REPORTS).glob("*.json")}
    return Tally(
        tasks=len(names),
        attempts=runs.total(),
        attempts_recorded=sum(task.status.attempt_count for task in tasks),
        duplicates=sum(times > 1 for times in runs.values()),
        lost=len(names.keys() - reports.keys()),
        seconds=seconds,
        retried=tuple(_retried(names[task.uid], task) for task in tasks if task.status.attempts),
        reports=tuple(reports.values()),
    )


def _retried(name: str, task: Task) -> Retried:
    return Retried(
        name=name,
        state=TaskState.Name(task.status.state).removeprefix("TASK_STATE_").lower(),
        causes=tuple(f"{each.error.type} in attempt {each.number}" for each in task.status.attempts),
    )
