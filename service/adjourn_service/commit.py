"""Group commit: every operation that waits goes into the next commit, and one fsync serves all.

The event loop submits; one thread applies. There is no batching window: a commit carries what arrived while the one
before it was being written, so its size follows the load and the disk by itself.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Container
from typing import Final

from adjourn_service.errors import ShuttingDown, StoreFull, StoreUnavailable
from adjourn_service.store.base import Applied, Create, Operation, Result, Settle, Store

log = logging.getLogger(__name__)

COMMIT_WEIGHT: Final = 20_000
"""Tasks that one commit may carry, give or take one operation: some 50 ms of work, which bounds the next one's wait."""

Done = Callable[[Result | BaseException], None]
"""Takes the result of an operation, on the event loop; a refusal or a failure is given as the exception."""


def _weight(operation: Operation) -> int:
    match operation:
        case Create(tasks):
            return len(tasks)
        case Settle(succeeded, others):
            return len(succeeded) + len(others)
        case _:
            return 1


class GroupCommit:
    """Drives a store from an event loop.

    `applied` is called on the loop after each commit, behind the callbacks of its operations. `watched` is given to
    the store with every batch."""

    def __init__(self, store: Store, applied: Callable[[Applied], None], watched: Container[bytes]) -> None:
        self._store = store
        self._on_applied = applied
        self._watched = watched
        self._waiting: list[tuple[Operation, Done]] = []
        self._condition = threading.Condition()
        self._kicked = False
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)

    def start(self) -> None:
        """Begin to commit. To be called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, operation: Operation, done: Done) -> None:
        """Have an operation applied by the next commit, behind those submitted before it; then call `done`.

        Everything that is submitted in one turn of the event loop goes into one commit."""
        if self._closing:
            done(ShuttingDown())
            return
        self._waiting.append((operation, done))
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._kick)

    async def close(self) -> None:
        """Commit what was submitted, refuse what comes later, and end the thread."""
        self._closing = True
        self._kick()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    def _kick(self) -> None:
        self._kicked = False
        with self._condition:
            self._condition.notify()

    # --- on the thread

    def _work(self) -> None:
        while batch := self._take():
            self._apply(batch)

    def _take(self) -> list[tuple[Operation, Done]]:
        """Wait for operations; returns none when there will be no more."""
        with self._condition:
            while not self._waiting and not self._closing:
                self._condition.wait()
        count = weight = 0
        while count < len(self._waiting) and weight < COMMIT_WEIGHT:
            weight += _weight(self._waiting[count][0])
            count += 1
        batch = self._waiting[:count]
        del self._waiting[:count]
        return batch

    def _apply(self, batch: list[tuple[Operation, Done]]) -> None:
        try:
            applied = self._store.apply([operation for operation, _ in batch], watched=self._watched)
        except (StoreFull, StoreUnavailable) as error:
            log.warning("commit failed", extra={"error": str(error), "operations": len(batch)})
            self._answer(self._fail, batch, error)
        except Exception as error:
            # A bug of ours. Apply the others each by itself, so that one poisonous operation fails alone.
            log.exception("commit raised", extra={"operations": len(batch)})
            if len(batch) == 1:
                self._answer(self._fail, batch, error)
            else:
                for item in batch:
                    self._apply([item])
        else:
            self._answer(self._resolve, batch, applied)

    def _answer(self, answer: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(answer, *arguments)

    # --- back on the loop

    def _resolve(self, batch: list[tuple[Operation, Done]], applied: Applied) -> None:
        for (_, done), result in zip(batch, applied.results, strict=True):
            _tell(done, result)
        self._on_applied(applied)

    def _fail(self, batch: list[tuple[Operation, Done]], error: Exception) -> None:
        for _, done in batch:
            _tell(done, error)


def _tell(done: Done, result: Result | BaseException) -> None:
    """Call back. A bug in one callback must not keep the others from theirs: they would wait for ever."""
    try:
        done(result)
    except Exception:
        log.exception("callback raised")


def resolver(future: "asyncio.Future[Result]") -> Done:
    """Return a callback that settles a future, unless its caller has gone."""

    def done(result: Result | BaseException) -> None:
        if future.done():
            return
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

    return done
