"""Tasks: work that goes on after the call that started it was answered, or was not.

A task's body runs in its own thread, without ``Lab.lock``; it takes the lock for each short change
of state. A task lives on when the reply was lost or the session ended.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from pyVmomi import vim, vmodl

from holdfast_lab.faults import SoapFault
from holdfast_lab.lab_clock import utc_now
from holdfast_lab.lab_object import LabObject, ManagedEntity, escaped_name, wire_property

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab
    from holdfast_lab.sessions import Session

TASKS_KEPT_MAX = 5000  # finished tasks beyond it are forgotten, oldest first


class LabTask(LabObject):
    """One task; ``state`` is queued, running, success or error."""

    kind = vim.Task

    def __init__(
        self, lab: Lab, moid: str, *, entity: ManagedEntity, description_id: str, user_name: str
    ) -> None:
        super().__init__(lab, moid)
        self.entity = entity
        self.description_id = description_id
        self.user_name = user_name
        self.subject = entity.name
        self.state = "queued"
        self.progress: int | None = None
        self.result: object = None
        self.fault: SoapFault | None = None
        self.cancelable = False
        self.cancel_asked = threading.Event()
        self.queued: datetime = utc_now()
        self.started: datetime | None = None
        self.completed: datetime | None = None
        self.finished = threading.Event()

    @wire_property("info")
    def info(self) -> vim.TaskInfo:
        fault = None
        if self.fault is not None:
            fault = self.fault.fault
            fault.msg = self.fault.message
        return vim.TaskInfo(
            key=self.moid,
            task=self.ref,
            name=None,
            descriptionId=self.description_id,
            entity=self.entity.ref,
            entityName=escaped_name(self.entity.name),
            locked=[],
            state=self.state,
            cancelled=self.cancel_asked.is_set(),
            cancelable=self.cancelable and self.state in ("queued", "running"),
            error=fault,
            result=self.result,
            progress=self.progress,
            reason=vim.TaskReasonUser(userName=self.user_name),
            queueTime=self.queued,
            startTime=self.started,
            completeTime=self.completed,
            eventChainId=0,
        )

    def report(self, percent: int) -> None:
        """Say how far the work is. Takes the lock."""
        with self.lab.lock:
            self.progress = max(0, min(100, percent))
            self.lab.touch(self)


TaskBody = Callable[[LabTask], object]


class Tasks:
    """Starts tasks and knows which object is busy."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.known: list[LabTask] = []
        self.busy: dict[str, LabTask] = {}
        self.threads: set[threading.Thread] = set()

    def start(
        self,
        entity: ManagedEntity,
        description_id: str,
        body: TaskBody,
        *,
        session: Session | None = None,
        exclusive: bool = True,
        cancelable: bool = False,
        subject: str = "",
    ) -> vim.Task:
        """Start ``body`` as a task on ``entity``; needs ``Lab.lock``.

        An entity has one exclusive task at a time. ``subject`` names the VM that the task is about
        when the entity is not one (a folder, for CreateVM). Raises: SoapFault (TaskInProgress).
        """
        if exclusive:
            self.check_not_busy(entity)
        user_name = session.user.name if session and session.user else "lab"
        task = LabTask(
            self.lab,
            self.lab.new_task_id(entity, description_id),
            entity=entity,
            description_id=description_id,
            user_name=user_name,
        )
        task.subject = subject or entity.name
        task.cancelable = cancelable
        self.lab.add(task)
        if exclusive:
            self.busy[entity.moid] = task
        self._remember(task)
        entity.note_task(task.ref)
        thread = threading.Thread(
            target=self._run, args=(task, body), name=f"task {task.moid}", daemon=True
        )
        self.threads.add(thread)
        thread.start()
        reference: vim.Task = task.ref
        return reference

    def check_not_busy(self, entity: ManagedEntity) -> None:
        """Raises: SoapFault (TaskInProgress) while an exclusive task runs on ``entity``."""
        running = self.busy.get(entity.moid)
        if running is not None:
            raise SoapFault(
                vim.fault.TaskInProgress(task=running.ref),
                "The operation is not allowed in the current state: another task is already in"
                " progress.",
            )

    def running(self) -> list[LabTask]:
        """The tasks that have not ended yet."""
        return [task for task in self.known if not task.finished.is_set()]

    def wait(self, reference: vim.Task, timeout_seconds: float = 60.0) -> object:
        """Wait for a task from within the lab; its result. Raises: SoapFault, TimeoutError."""
        task = self.lab.get(reference, LabTask)
        if not task.finished.wait(timeout_seconds):
            raise TimeoutError(f"task {task.description_id} did not end")
        if task.fault is not None:
            raise task.fault
        return task.result

    def join(self, timeout_seconds: float) -> None:
        """Wait for the threads of all tasks, at the lab's end."""
        for thread in list(self.threads):
            thread.join(timeout_seconds)

    def _remember(self, task: LabTask) -> None:
        self.known.append(task)
        if len(self.known) > TASKS_KEPT_MAX:
            oldest = next((each for each in self.known if each.finished.is_set()), None)
            if oldest is not None:
                self.known.remove(oldest)
                self.lab.remove(oldest)

    def _run(self, task: LabTask, body: TaskBody) -> None:
        with self.lab.lock:
            task.state = "running"
            task.started = utc_now()
            self.lab.touch(task)
        result: object = None
        fault: SoapFault | None = None
        try:
            self.lab.misbehaviour.before_task(task)
            result = body(task)
            self.lab.misbehaviour.after_task(task)
        except SoapFault as raised:
            fault = raised
        except Exception as error:  # noqa: BLE001 - a bug of the lab must end its task with a fault
            self.lab.calls.note_bug(task.description_id, traceback.format_exc())
            fault = SoapFault(vmodl.fault.SystemError(reason=repr(error)), repr(error))
        with self.lab.lock:
            task.result, task.fault = (None, fault) if fault else (result, None)
            task.state = "error" if fault else "success"
            task.completed = utc_now()
            task.progress = None if fault else 100
            if self.busy.get(task.entity.moid) is task:
                del self.busy[task.entity.moid]
            self.lab.touch(task)
            self.lab.calls.note_task(task)
            task.finished.set()
            self.threads.discard(threading.current_thread())
