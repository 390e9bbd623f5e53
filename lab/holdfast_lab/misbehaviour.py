"""The switchboard of misbehaviour: what goes wrong, at which occurrence, how often.

A rule is armed over the control socket, and asked for at the place where it bites:

    rule = lab.misbehaviour.due("cut_change_lists", vm=machine.name)
    if rule is not None:
        areas = areas[: rule.number("keep", 1)]

Occurrences that do not match count nothing; ``nth`` is the first one that bites, ``times`` how many
do (None: all from then on).
"""

from __future__ import annotations

import fnmatch
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyVmomi import VmomiSupport, vmodl

from holdfast_lab.faults import ConnectionCut, LabError, SoapFault

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab
    from holdfast_lab.sessions import Session
    from holdfast_lab.tasks import LabTask

KINDS: Mapping[str, str] = {
    # calls: match on method, vm, this, user
    "expire_session": "the session ends right before the call",
    "lost_request": "the connection is cut before the call has an effect",
    "lost_reply": "the call has its effect, then the connection is cut",
    "fail_call": "the call fails with parameter fault (default SystemError)",
    "unavailable": "the call is answered HTTP 503",
    "silence": "the call is never answered, until the rule is released or disarmed",
    "hold_call": "the call waits before (or when=after) its effect until released",
    "kill_process": "parameter pid is killed; the call has no effect, or with when=after it has",
    "move_disk": "before the call, the disks of parameter vm move to parameter datastore",
    # tasks: match on description, vm
    "fail_task": "the task fails with parameter fault, before (or when=after) its effect",
    "slow_task": "the task takes parameter seconds longer",
    "hold_task": "the task does not start (when=before) or end (when=after) until released",
    # data and disks: match on vm, disk, datastore, direction
    "cut_change_lists": "the answer of changed areas ends early, with a short length",
    "lying_changed_blocks": "the answer of changed areas leaves some out",
    "leave_consolidation": "removing a snapshot leaves its disks behind",
    "flip_byte": "one byte of a disk is changed after its write was acknowledged",
    "cut_stream": "a data stream is cut after parameter bytes",
    "datastore_full": "writing to the datastore fails with NoDiskSpace",
    # tags: match on tag, user
    "hide_tags": "a tag is left out of answers, as for an account that may not read it",
}
HOLD_SECONDS_MAX = 600.0  # a held call or task goes on after this, so that nothing hangs for ever


@dataclass(slots=True, kw_only=True)
class Rule:
    """One armed misbehaviour."""

    identifier: str
    kind: str
    match: Mapping[str, str] = field(default_factory=dict)
    nth: int = 1
    times: int | None = 1
    parameters: Mapping[str, str] = field(default_factory=dict)
    seen: int = 0
    fired: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    def matches(self, facts: Mapping[str, str]) -> bool:
        """Whether the facts of an occurrence fit every pattern of the rule."""
        if facts.get("when", self.when()) != self.when():
            return False
        return all(
            fnmatch.fnmatchcase(facts.get(name, ""), pattern)
            for name, pattern in self.match.items()
        )

    def text(self, name: str, default: str = "") -> str:
        """A parameter as text."""
        return self.parameters.get(name, default)

    def number(self, name: str, default: int) -> int:
        """A parameter as an integer."""
        return int(self.parameters.get(name, default))

    def when(self) -> str:
        """``before`` or ``after`` the effect."""
        return self.text("when", "before")

    def describe(self) -> dict[str, object]:
        """The rule as plain values."""
        return {
            "id": self.identifier,
            "kind": self.kind,
            "match": dict(self.match),
            "nth": self.nth,
            "times": self.times,
            "parameters": dict(self.parameters),
            "seen": self.seen,
            "fired": self.fired,
        }


class Misbehaviour:
    """All armed rules. Thread-safe by a lock of its own."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.rules: list[Rule] = []
        self._lock = threading.Lock()
        self._next = 0

    def arm(
        self,
        kind: str,
        *,
        match: Mapping[str, str] | None = None,
        nth: int = 1,
        times: int | None = 1,
        parameters: Mapping[str, str] | None = None,
    ) -> Rule:
        """Arm a rule. Raises: LabError for an unknown kind or fault."""
        if kind not in KINDS:
            raise LabError(f"unknown misbehaviour {kind}; known: {', '.join(KINDS)}")
        if parameters and "fault" in parameters:
            fault_named(parameters["fault"])
        with self._lock:
            self._next += 1
            rule = Rule(
                identifier=f"rule-{self._next}",
                kind=kind,
                match=match or {},
                nth=nth,
                times=times,
                parameters=parameters or {},
            )
            self.rules.append(rule)
        return rule

    def release(self, identifier: str | None = None) -> int:
        """Let go on what a rule (or every rule) holds; how many rules that were."""
        with self._lock:
            chosen = [rule for rule in self.rules if identifier in (None, rule.identifier)]
        for rule in chosen:
            rule.released.set()
        return len(chosen)

    def disarm(self, identifier: str | None = None) -> int:
        """Take rules off, releasing what they hold; how many there were."""
        count = self.release(identifier)
        with self._lock:
            self.rules = [rule for rule in self.rules if identifier not in (None, rule.identifier)]
        return count

    def due(self, kind: str, **facts: str) -> Rule | None:
        """Count an occurrence; the rule that bites now, or None."""
        bites: Rule | None = None
        with self._lock:
            for rule in self.rules:
                if rule.kind != kind or not rule.matches(facts):
                    continue
                rule.seen += 1
                spent = rule.times is not None and rule.fired >= rule.times
                if bites is None and rule.seen >= rule.nth and not spent:
                    rule.fired += 1
                    bites = rule
        if bites is not None:
            self.lab.calls.event("misbehaviour", kind=kind, rule=bites.identifier, **facts)
        return bites

    def hold(self, rule: Rule) -> None:
        """Wait until the rule is released; never with ``Lab.lock`` held."""
        rule.released.wait(HOLD_SECONDS_MAX)

    # calls ------------------------------------------------------------------

    def before_call(self, facts: Mapping[str, str], session: Session) -> bool:
        """What goes wrong before a call's effect; True when it is to be answered 503.

        Called without ``Lab.lock``. Raises: ConnectionCut, SoapFault.
        """
        if (rule := self.due("silence", **facts)) is not None:
            self.hold(rule)
            raise ConnectionCut("silence")
        if self.due("unavailable", **facts) is not None:
            return True
        if self.due("lost_request", **facts) is not None:
            raise ConnectionCut("lost request")
        if self.due("expire_session", **facts) is not None:
            with self.lab.lock:
                self.lab.sessions.end(session)
        if (rule := self.due("move_disk", **facts)) is not None:
            self.lab.move_disks(rule.text("vm"), rule.text("datastore"))
        if (rule := self.due("fail_call", **facts)) is not None:
            raise fault_named(rule.text("fault", "SystemError"))
        return False

    def around_call(self, when: str, facts: Mapping[str, str]) -> None:
        """Hold the call or kill a process, before or after the effect. Without ``Lab.lock``."""
        for kind in ("hold_call", "kill_process"):
            if (rule := self.due(kind, **facts, when=when)) is None:
                continue
            if kind == "hold_call":
                self.hold(rule)
                continue
            kill(rule.number("pid", 0))
            if when == "before":
                raise ConnectionCut("its sender was killed before the call arrived")

    def after_call(self, facts: Mapping[str, str]) -> None:
        """Raises: ConnectionCut when the reply is to be lost."""
        if self.due("lost_reply", **facts) is not None:
            raise ConnectionCut("lost reply")

    # tasks ------------------------------------------------------------------

    def before_task(self, task: LabTask) -> None:
        """Slow, hold or fail a task before its effect."""
        facts = {"description": task.description_id, "vm": task.subject}
        if (rule := self.due("slow_task", **facts)) is not None:
            rule.released.wait(float(rule.text("seconds", "1")))
        self._task_rules(facts, "before")

    def after_task(self, task: LabTask) -> None:
        """Hold or fail a task after its effect."""
        self._task_rules({"description": task.description_id, "vm": task.subject}, "after")

    def _task_rules(self, facts: Mapping[str, str], when: str) -> None:
        if (rule := self.due("hold_task", **facts, when=when)) is not None:
            self.hold(rule)
        if (rule := self.due("fail_task", **facts, when=when)) is not None:
            raise fault_named(rule.text("fault", "SystemError"))


def fault_named(name: str) -> SoapFault:
    """The fault with this wire name. Raises: LabError when there is none."""
    try:
        kind = VmomiSupport.GuessWsdlType(name)
    except KeyError as error:
        raise LabError(f"there is no fault {name}") from error
    if not issubclass(kind, vmodl.MethodFault):
        raise LabError(f"{name} is no fault")
    made = kind()
    for prop in kind._GetPropertyList():
        if getattr(made, prop.name) is None and prop.type is str and not prop.flags:
            setattr(made, prop.name, "lab")
    return SoapFault(made, f"{name}, as the lab was told to say")


def kill(pid: int) -> None:
    """SIGKILL for one process; one that is gone already is no error."""
    if pid <= 1:
        raise LabError(f"will not kill process {pid}")
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
