"""Tags in a lab, as an administrator there makes them."""

from __future__ import annotations

from contextlib import suppress

from holdfast_lab.control_client import ControlFailed
from holdfast_lab.server import RunningLab


def tag_vm(lab: RunningLab, vm: str, *tags: str) -> None:
    """Attach tags, each ``category/name``; what is not there yet is made."""
    for each in tags:
        category, _, name = each.partition("/")
        with suppress(ControlFailed):
            lab.control.call("tag-category-add", name=category)
        with suppress(ControlFailed):
            lab.control.call("tag-add", category=category, name=name)
        lab.control.call("tag-attach", tag=each, name=vm)


def rest_calls(lab: RunningLab) -> list[str]:
    """What was asked over REST, in order."""
    return [str(each["method"]) for each in lab.lab.calls.events(event="rest")]


def open_rest_sessions(lab: RunningLab) -> int:
    """How many sessions at the REST interface were not given back."""
    return sum(1 for each in lab.control.call("session-list") if each["interface"] == "rest")
