"""The product's own session, which notes how every call, task and file request of it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from holdfast_common.errors import HoldfastError
from holdfast_controller.vsphere import faults
from holdfast_controller.vsphere.session import Login, VsphereSession

Value = TypeVar("Value")
# With these the other side says that it has no such method: no fault of the caller's.
NOT_THERE: Final = frozenset({"MethodNotFound", "NotSupported", "NotImplemented"})


@dataclass
class Outcomes:
    """What became of the calls, by method. Thread-safe."""

    passed: dict[str, int] = field(default_factory=dict)
    failed: dict[str, list[HoldfastError]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, method: str, error: HoldfastError | None = None) -> None:
        """One more end of a call."""
        with self.lock:
            if error is None:
                self.passed[method] = self.passed.get(method, 0) + 1
            else:
                self.failed.setdefault(method, []).append(error)

    def not_there(self, method: str) -> HoldfastError | None:
        """The fault that says that the other side has no such method."""
        errors = self.failed.get(method, [])
        return next((each for each in errors if faults.fault_name(each) in NOT_THERE), None)


class RefereedSession(VsphereSession):
    """A call passed when its reply came; one that starts a task, when the task succeeded."""

    def __init__(self, *arguments: Any, outcomes: Outcomes, **options: Any) -> None:
        self.outcomes = outcomes
        self._tasks_of: dict[str, str] = {}
        super().__init__(*arguments, **options)

    def _invoke(self, login: Login, target: Any, method: str, arguments: Mapping[str, Any]) -> Any:
        invoke = super()._invoke
        result = self._noted(method, lambda: invoke(login, target, method, arguments))
        if method.endswith("_Task"):
            self._tasks_of[str(result._moId)] = method
        return result

    def through_gate(self, name: str, subject: str, work: Callable[[], Value]) -> Value:
        through_gate = super().through_gate
        return self._noted(name, lambda: through_gate(name, subject, work))

    def wait_for_task(self, task: Any, **options: Any) -> Any:
        wait = super().wait_for_task
        method = self._tasks_of.get(str(task._moId), "a task of nobody's")
        result = self._noted("", lambda: wait(task, **options), as_method=method)
        self.outcomes.note(method)
        return result

    def _noted(self, method: str, work: Callable[[], Value], *, as_method: str = "") -> Value:
        try:
            result = work()
        except HoldfastError as error:
            self.outcomes.note(as_method or method, error)
            raise
        if method and not method.endswith("_Task"):
            self.outcomes.note(method)
        return result
