"""The loop that watches tasks: when it works and when it waits."""

from __future__ import annotations

import pytest
from pyVmomi import vim

from holdfast_controller.vsphere import task_watcher
from holdfast_controller.vsphere.foreign import Foreign, Reference, reference
from holdfast_controller.vsphere.task_watcher import TaskWatcher, WatchedTask


class NoCaller:
    """Nothing is called."""

    def call_in_login(self, target: Reference, method: str, **arguments: Foreign) -> Foreign:
        raise AssertionError(f"{method} was called on {target} with {arguments}")

    def collector(self) -> Foreign:
        raise AssertionError("nobody asks for a collector")


def test_a_task_that_ended_keeps_nobody_busy_until_its_waiter_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(task_watcher, "IDLE_SECONDS", 0.01)
    watcher = TaskWatcher(NoCaller(), patience_seconds=1.0)
    ended, running = (WatchedTask(reference(vim.Task, name)) for name in ("task-1", "task-2"))
    ended.ended.set()
    watcher._watched.add(ended)  # its waiter has not woken up yet
    assert not watcher._match_filters(None)
    assert not watcher._somebody_came(), "the loop waits for a task to watch"
    watcher._watched.add(running)
    assert watcher._somebody_came()
