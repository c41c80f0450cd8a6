"""A small honest service for the client's tests.

It keeps tasks in a dict, refuses what the real one refuses with the same status details, and can be told to fail, to
hold its answers and to stop. It runs no task."""
# ruff: noqa: N802  -- the methods of servicers have the names of the calls.

from __future__ import annotations

import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from adjourn.v1 import (
    queue_pb2,
    queue_service_pb2,
    queue_service_pb2_grpc,
    task_pb2,
    task_service_pb2,
    task_service_pb2_grpc,
)

PAYLOAD_BYTES_MAX = 32 * 1024


def status_of(code: str, message: str, reason: str = "", violations: Any = (), **metadata: str) -> status_pb2.Status:
    """A google.rpc.Status as the service makes it."""
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message)
    if reason:
        info = error_details_pb2.ErrorInfo(reason=reason, domain="adjourn", metadata=metadata)
        detail = any_pb2.Any()
        detail.Pack(info)
        status.details.append(detail)
    if violations:
        bad = error_details_pb2.BadRequest()
        for field, description in violations:
            bad.field_violations.add(field=field, description=description)
        detail = any_pb2.Any()
        detail.Pack(bad)
        status.details.append(detail)
    return status


class _Status(NamedTuple):
    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


class FakeService:
    """The servicers and the server they run in. `target` is where it listens."""

    def __init__(self, port: int = 0) -> None:
        self.tasks: dict[str, task_pb2.Task] = {}
        self.uids: set[str] = set()
        self.queues = {"queues/default": queue_pb2.Queue(name="queues/default")}
        self.calls: list[str] = []
        self.batch_sizes: list[int] = []
        self.payload_requests: list[task_service_pb2.CreateTaskRequest] = []
        self.faults: deque[status_pb2.Status] = deque()
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.arrived = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
        task_service_pb2_grpc.add_TasksServicer_to_server(_Tasks(self), self._server)
        queue_service_pb2_grpc.add_QueuesServicer_to_server(_Queues(self), self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.target = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        """Close the port and all connections."""
        self.open_gate.set()
        self._server.stop(0).wait()

    def wait_for_termination(self) -> None:
        """Serve until the process is ended."""
        self._server.wait_for_termination()

    def enter(self, call: str, context: Any) -> None:
        """Count a call, hold it while the gate is closed, and let it fail if that is what comes next."""
        with self._lock:
            self.calls.append(call)
            fault = self.faults.popleft() if self.faults else None
        self.arrived.release()
        self.open_gate.wait()
        if fault is not None:
            self.refuse(context, fault)

    def refuse(self, context: Any, status: status_pb2.Status) -> None:
        """End a call with a status and its details."""
        code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        trailers = (("grpc-status-details-bin", status.SerializeToString()),)
        context.abort_with_status(_Status(code, status.message, trailers))

    def create(self, request: task_service_pb2.CreateTaskRequest, index: int = 0) -> status_pb2.Status | None:
        """Make a task, or say why not."""
        name = f"{request.parent}/tasks/{request.task_id or request.request_id}"
        with self._lock:
            if request.request_id in self.uids:
                return None
            if request.parent not in self.queues:
                queue = request.parent.removeprefix("queues/")
                return status_of("NOT_FOUND", f"queue {queue!r} does not exist", "QUEUE_NOT_FOUND", queue=queue)
            if name in self.tasks:
                return status_of("ALREADY_EXISTS", f"task {name!r} exists", "TASK_EXISTS", task=name)
            if not -1000 <= request.task.priority <= 1000:
                violations = [(f"requests[{index}].task.priority", "must be from -1000 to 1000")]
                return status_of("INVALID_ARGUMENT", f"{violations[0][0]}: wrong", "INVALID_FIELD", violations)
            if len(request.task.payload) > PAYLOAD_BYTES_MAX:
                return status_of("INVALID_ARGUMENT", "payload is too large", "PAYLOAD_TOO_LARGE")
            self.uids.add(request.request_id)
            self.payload_requests.append(request)
            task = task_pb2.Task()
            task.CopyFrom(request.task)
            task.name, task.uid = name, request.request_id
            task.status.state = (
                task_pb2.TASK_STATE_SCHEDULED if request.task.HasField("countdown") else task_pb2.TASK_STATE_READY
            )
            self.tasks[name] = task
        return None

    def find(self, name: str, context: Any) -> task_pb2.Task:
        """Look a task up, or end the call."""
        task = self.tasks.get(name)
        if task is None:
            self.refuse(context, status_of("NOT_FOUND", f"task {name!r} does not exist", "TASK_NOT_FOUND", task=name))
        assert task is not None
        return task


class _Tasks(task_service_pb2_grpc.TasksServicer):
    def __init__(self, service: FakeService) -> None:
        self.service = service

    def Create(self, request, context):
        self.service.enter("Create", context)
        if (status := self.service.create(request)) is not None:
            self.service.refuse(context, status)
        return task_service_pb2.CreateTaskResponse()

    def BatchCreate(self, request, context):
        self.service.batch_sizes.append(len(request.requests))
        self.service.enter("BatchCreate", context)
        failed = {i: s for i, r in enumerate(request.requests) if (s := self.service.create(r, i)) is not None}
        return task_service_pb2.BatchCreateTasksResponse(failed_requests=failed)

    def Get(self, request, context):
        self.service.enter("Get", context)
        return task_service_pb2.GetTaskResponse(task=self.service.find(request.name, context))

    def List(self, request, context):
        self.service.enter("List", context)
        first = int(request.page_token or 0)
        found = [
            t
            for t in self.service.tasks.values()
            if request.parent in ("queues/-", t.name.partition("/tasks/")[0])
            and request.state in (task_pb2.TASK_STATE_UNSPECIFIED, t.status.state)
            and request.tag in ("", t.tag)
        ]
        # Short pages, as the real service may give.
        page = found[first : first + min(request.page_size, 3)]
        token = str(first + len(page)) if first + len(page) < len(found) else ""
        return task_service_pb2.ListTasksResponse(tasks=page, next_page_token=token)

    def Cancel(self, request, context):
        self.service.enter("Cancel", context)
        task = self.service.find(request.name, context)
        if task.status.state == task_pb2.TASK_STATE_CANCELLED:
            self.service.refuse(
                context, status_of("FAILED_PRECONDITION", "task has ended", "TASK_STATE", state="cancelled")
            )
        task.status.state = task_pb2.TASK_STATE_CANCELLED
        return task_service_pb2.CancelTaskResponse(task=task)

    def Delete(self, request, context):
        self.service.enter("Delete", context)
        self.service.find(request.name, context)
        del self.service.tasks[request.name]
        return task_service_pb2.DeleteTaskResponse()

    def Run(self, request, context):
        self.service.enter("Run", context)
        task = self.service.find(request.name, context)
        task.status.state = task_pb2.TASK_STATE_READY
        return task_service_pb2.RunTaskResponse(task=task)

    def Retry(self, request, context):
        self.service.enter("Retry", context)
        task = self.service.find(request.name, context)
        task.status.state = task_pb2.TASK_STATE_READY
        return task_service_pb2.RetryTaskResponse(task=task)

    def Wait(self, request, context):
        self.service.enter("Wait", context)
        return task_service_pb2.WaitTaskResponse(task=self.service.find(request.name, context))


class _Queues(queue_service_pb2_grpc.QueuesServicer):
    def __init__(self, service: FakeService) -> None:
        self.service = service

    def find(self, name: str, context: Any) -> Any:
        queue = self.service.queues.get(name)
        if queue is None:
            self.service.refuse(context, status_of("NOT_FOUND", f"queue {name!r} does not exist", "QUEUE_NOT_FOUND"))
        return queue

    def Create(self, request, context):
        self.service.enter("CreateQueue", context)
        if request.queue.name in self.service.queues:
            self.service.refuse(context, status_of("ALREADY_EXISTS", "queue exists", "QUEUE_EXISTS"))
        self.service.queues[request.queue.name] = request.queue
        return queue_service_pb2.CreateQueueResponse(queue=request.queue)

    def Get(self, request, context):
        self.service.enter("GetQueue", context)
        return queue_service_pb2.GetQueueResponse(queue=self.find(request.name, context))

    def List(self, request, context):
        self.service.enter("ListQueues", context)
        names = sorted(self.service.queues)
        first = int(request.page_token or 0)
        token = str(first + 1) if first + 1 < len(names) else ""
        page = [self.service.queues[name] for name in names[first : first + 1]]
        return queue_service_pb2.ListQueuesResponse(queues=page, next_page_token=token)

    def Update(self, request, context):
        self.service.enter("UpdateQueue", context)
        queue = self.find(request.queue.name, context)
        request.update_mask.MergeMessage(request.queue, queue)
        return queue_service_pb2.UpdateQueueResponse(queue=queue)

    def Delete(self, request, context):
        self.service.enter("DeleteQueue", context)
        self.find(request.name, context)
        held = any(name.startswith(f"{request.name}/") for name in self.service.tasks)
        if held and not request.force:
            self.service.refuse(context, status_of("FAILED_PRECONDITION", "queue holds tasks", "QUEUE_NOT_EMPTY"))
        del self.service.queues[request.name]
        return queue_service_pb2.DeleteQueueResponse()

    def Pause(self, request, context):
        self.service.enter("Pause", context)
        queue = self.find(request.name, context)
        queue.state = queue_pb2.QUEUE_STATE_PAUSED
        return queue_service_pb2.PauseQueueResponse(queue=queue)

    def Resume(self, request, context):
        self.service.enter("Resume", context)
        queue = self.find(request.name, context)
        queue.state = queue_pb2.QUEUE_STATE_RUNNING
        return queue_service_pb2.ResumeQueueResponse(queue=queue)

    def Purge(self, request, context):
        self.service.enter("Purge", context)
        doomed = [name for name in self.service.tasks if name.startswith(f"{request.name}/")]
        for name in doomed:
            del self.service.tasks[name]
        return queue_service_pb2.PurgeQueueResponse(purged_count=len(doomed))

    def GetStats(self, request, context):
        self.service.enter("GetStats", context)
        ready = sum(name.startswith(f"{request.name}/") for name in self.service.tasks)
        stats = queue_pb2.QueueStats(name=request.name, ready_count=ready)
        return queue_service_pb2.GetQueueStatsResponse(stats=stats)


if __name__ == "__main__":
    # A process of its own, for tests that fork: prints its target when it listens.
    service = FakeService()
    sys.stdout.write(f"{service.target}\n")
    sys.stdout.flush()
    service.wait_for_termination()
