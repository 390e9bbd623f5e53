"""One loop of WaitForUpdatesEx for each vCenter, serving every task that somebody waits for.

A task outlives connections and logins: after a loss the loop starts anew with another collector and
reads the state of every task again, before anything else is done.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Final, Protocol

from pyVmomi import vim, vmodl

from holdfast_common.errors import HoldfastError, SourceGone, TimedOut, VsphereUnavailable
from holdfast_controller.vsphere.foreign import Foreign, Reference, moref_of

log = logging.getLogger(__name__)

WAIT_SECONDS_MAX: Final = 20  # of one WaitForUpdatesEx: well below the timeout of a connection
RETRY_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 30.0  # the collector is kept so long for the next task
TASK_PATHS: Final = ("info.state", "info.result", "info.error")
_ENDED: Final = ("success", "error")
Query = vmodl.query.PropertyCollector


class Caller(Protocol):
    """What the loop needs of a session."""

    def call_in_login(self, target: Reference, method: str, **arguments: Foreign) -> Foreign:
        """One call, never repeated. Raises: SessionLost when the login ended."""
        ...

    def collector(self) -> Foreign:
        """The property collector of the service."""
        ...


@dataclass(slots=True, eq=False)
class WatchedTask:
    """What one waiter knows of a task; ``ended`` is set at its end or when watching failed.

    Every waiter has a filter of its own: a new filter tells the present state, an old one only changes.
    """

    task: Reference
    values: dict[str, Foreign] = field(default_factory=dict)
    failure: HoldfastError | None = None
    ended: threading.Event = field(default_factory=threading.Event)


class TaskWatcher:
    """Waits for tasks. Thread-safe; its own thread lives while somebody waits."""

    def __init__(self, caller: Caller, *, patience_seconds: float) -> None:
        self._caller = caller
        self._patience_seconds = patience_seconds
        self._lock = threading.Condition()
        self._watched: set[WatchedTask] = set()
        self._filters: dict[WatchedTask, Foreign] = {}
        self._collector: Foreign = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def wait(self, task: Reference, *, timeout_seconds: float) -> WatchedTask:
        """The task at its end. Raises: TimedOut (it goes on), SourceGone, VsphereUnavailable."""
        watched = WatchedTask(task)
        with self._lock:
            self._watched.add(watched)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vSphere tasks", daemon=True)
                self._thread.start()
            self._lock.notify_all()
            collector = self._collector
        if collector is not None:
            self._add_filter_beside_the_loop(collector, watched)
        try:
            if not watched.ended.wait(timeout_seconds):
                raise TimedOut(
                    "a task of vSphere did not end in time; it goes on",
                    task=str(task._moId),
                    timeout_seconds=timeout_seconds,
                )
        finally:
            with self._lock:
                self._watched.discard(watched)
        if watched.failure is not None:
            raise watched.failure
        return watched

    def stop(self) -> None:
        """End the loop; those who wait get VsphereUnavailable."""
        self._stop.set()
        with self._lock:
            thread, collector = self._thread, self._collector
            self._lock.notify_all()
        if collector is not None:
            try:
                self._caller.call_in_login(collector, "CancelWaitForUpdates")
            except HoldfastError as error:
                log.debug("a wait could not be ended early", extra={"error": str(error)})
        if thread is not None and thread is not threading.current_thread():
            thread.join(WAIT_SECONDS_MAX + 5)
        self._fail_all(VsphereUnavailable("the connection to vSphere was closed"))

    def _run(self) -> None:
        failing_seconds = 0.0
        while not self._stop.is_set():
            try:
                if not self._serve():
                    return
                failing_seconds = 0.0
            except HoldfastError as error:
                self._forget_collector()
                if not error.retryable or failing_seconds > self._patience_seconds:
                    self._fail_all(error)
                failing_seconds += RETRY_SECONDS
                self._stop.wait(RETRY_SECONDS)

    def _serve(self) -> bool:
        """Watch with one collector until nobody waits (False) or it is lost. Raises: HoldfastError."""
        collector = self._caller.call_in_login(self._caller.collector(), "CreatePropertyCollector")
        with self._lock:
            self._collector = collector
            self._filters = {}
        version = ""
        options = Query.WaitOptions(maxWaitSeconds=WAIT_SECONDS_MAX)
        while not self._stop.is_set():
            if not self._match_filters(collector):
                if self._somebody_came():
                    continue
                self._caller.call_in_login(collector, "DestroyPropertyCollector")
                return self._keep_thread()
            update = self._caller.call_in_login(
                collector, "WaitForUpdatesEx", version=version, options=options
            )
            if update is not None:
                version = update.version
                self._take(update)
        return False

    def _somebody_came(self) -> bool:
        """Whether there is a task to be watched. Those that ended do not count: their waiters are on their way."""
        with self._lock:
            return self._lock.wait_for(
                lambda: (
                    any(not each.ended.is_set() for each in self._watched) or self._stop.is_set()
                ),
                IDLE_SECONDS,
            )

    def _keep_thread(self) -> bool:
        """False when nobody waits: the thread ends, and the next waiter starts another."""
        with self._lock:
            self._collector = None
            self._filters = {}
            if self._watched:
                return True
            self._thread = None
            return False

    def _match_filters(self, collector: Reference) -> bool:
        with self._lock:
            waiting = [each for each in self._watched if not each.ended.is_set()]
            gone = [key for key in self._filters if key not in self._watched]
            dropped = [self._filters.pop(key) for key in gone]
        for old in dropped:
            if old is not None:
                self._caller.call_in_login(old, "DestroyPropertyFilter")
        for watched in waiting:
            self._add_filter(collector, watched)
        return bool(waiting)

    def _add_filter_beside_the_loop(self, collector: Reference, watched: WatchedTask) -> None:
        """From a waiter's thread, so that the loop's running wait hears of the task at once."""
        try:
            self._add_filter(collector, watched)
        except HoldfastError as error:
            # the loop meets the same error and knows what to do
            log.debug("a filter could not be added", extra={"error": str(error)})

    def _add_filter(self, collector: Reference, watched: WatchedTask) -> None:
        moref = str(watched.task._moId)
        with self._lock:
            if self._collector is not collector or watched in self._filters:
                return  # the loop has started anew, or was faster
            self._filters[watched] = None
        spec = Query.FilterSpec(
            objectSet=[Query.ObjectSpec(obj=watched.task)],
            propSet=[Query.PropertySpec(type=vim.Task, all=False, pathSet=list(TASK_PATHS))],
        )
        try:
            made = self._caller.call_in_login(
                collector, "CreateFilter", spec=spec, partialUpdates=False
            )
        except HoldfastError as error:
            with self._lock:
                if self._collector is collector:
                    self._filters.pop(watched, None)
            if not isinstance(error, SourceGone):
                raise
            if error.facts.get("object") != moref:
                raise VsphereUnavailable("the collector of tasks is gone") from error
            watched.failure = error
            watched.ended.set()
            return
        with self._lock:
            if self._collector is collector:
                self._filters[watched] = made

    def _take(self, update: Foreign) -> None:
        for filter_set in update.filterSet or []:
            for changed in filter_set.objectSet or []:
                for watched in self._concerned(filter_set.filter, changed):
                    _note(watched, changed)

    def _concerned(self, source: Reference, changed: Foreign) -> list[WatchedTask]:
        """Who may take an update: it is of their filter (or that is not known yet), or it is complete."""
        task, came_from = moref_of(changed.obj), moref_of(source)
        with self._lock:
            return [
                each
                for each in self._watched
                if moref_of(each.task) == task
                and (
                    changed.kind == "enter" or moref_of(self._filters.get(each)) in ("", came_from)
                )
            ]

    def _forget_collector(self) -> None:
        with self._lock:
            self._collector = None
            self._filters = {}

    def _fail_all(self, error: HoldfastError) -> None:
        with self._lock:
            waiting = list(self._watched)
        for watched in waiting:
            if not watched.ended.is_set():
                watched.failure = error
                watched.ended.set()


def _note(watched: WatchedTask, changed: Foreign) -> None:
    if changed.kind == "leave":
        watched.failure = SourceGone("vSphere has forgotten a task", task=str(changed.obj._moId))
        watched.ended.set()
    for change in changed.changeSet or []:
        watched.values[str(change.name)] = change.val
    if watched.values.get("info.state") in _ENDED:
        watched.ended.set()
