"""What every object that a client can name has in common: a reference and wire properties.

A property that clients read is a method marked with ``@wire_property("name")``; it is called with
``Lab.lock`` held and builds its value from the object's state. Whoever changes state calls
``lab.touch(object)``, which wakes all that wait for updates.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pyVmomi import VmomiSupport, vim

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab
    from holdfast_lab.sessions import Session

Reader = TypeVar("Reader", bound=Callable[..., object])
TASKS_SHOWN_MAX = 8  # as many as an entity lists in recentTask
FILE_STEM_BYTES_MAX = 200  # a file's name has 255 at most, endings of snapshots included


def wire_property(name: str) -> Callable[[Reader], Reader]:
    """Mark a method as the reader of the property ``name``."""

    def mark(reader: Reader) -> Reader:
        reader.__dict__["wire_property"] = name
        return reader

    return mark


class LabObject:
    """A managed object. ``version`` is the lab's version at its last change."""

    kind: ClassVar[type[VmomiSupport.ManagedObject]]
    readers: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        found = dict(cls.readers)
        for attribute, value in vars(cls).items():
            name = getattr(value, "wire_property", None)
            if isinstance(name, str):
                found[name] = attribute
        cls.readers = found

    def __init__(self, lab: Lab, moid: str) -> None:
        self.lab = lab
        self.ref: Any = self.kind(moid, None)
        self.version = 0

    @property
    def moid(self) -> str:
        """The object's id on the wire, such as ``vm-12``."""
        return str(self.ref._moId)

    def read(self, name: str, session: Session | None) -> object:
        """The value of one wire property; None when it is unset.

        ``session`` is the reader's, for the few properties that differ by session.
        """
        attribute = self.readers.get(name)
        return None if attribute is None else getattr(self, attribute)()

    def forget(self) -> None:
        """Called when the object is removed from the lab."""


class ManagedEntity(LabObject):
    """An object of the inventory tree: it has a name, a parent and recent tasks."""

    def __init__(self, lab: Lab, moid: str, *, name: str, parent: ManagedEntity | None) -> None:
        super().__init__(lab, moid)
        self.name = name
        self.parent = parent
        self.recent_tasks: list[vim.Task] = []

    def children(self) -> list[ManagedEntity]:
        """The entities below this one, for views and for searches."""
        return []

    def detach_child(self, child: ManagedEntity) -> None:
        """Take ``child`` out of this entity; only folders can."""
        raise TypeError(f"{type(self).__name__} has no children to detach: {child.name}")

    @wire_property("name")
    def name_on_the_wire(self) -> str:
        """vSphere escapes the three characters that paths cannot hold."""
        return escaped_name(self.name)

    @wire_property("parent")
    def parent_reference(self) -> object:
        return self.parent.ref if self.parent else None

    @wire_property("recentTask")
    def recent_task_references(self) -> object:
        return list(self.recent_tasks)

    @wire_property("overallStatus")
    def overall_status(self) -> object:
        return "green"

    @wire_property("configStatus")
    def configuration_status(self) -> object:
        return "green"

    @wire_property("effectiveRole")
    def effective_role(self) -> object:
        return [-1]

    @wire_property("alarmActionsEnabled")
    def alarm_actions_enabled(self) -> object:
        return True

    @wire_property("disabledMethod")
    def disabled_methods(self) -> object:
        return []

    @wire_property("permission")
    def permissions(self) -> object:
        return []

    @wire_property("tag")
    def tags(self) -> object:
        return []

    def note_task(self, task: vim.Task) -> None:
        """Remember ``task`` as one of this entity's recent ones."""
        self.recent_tasks = [*self.recent_tasks, task][-TASKS_SHOWN_MAX:]
        self.lab.touch(self)


def escaped_name(name: str) -> str:
    """A name as vSphere shows it: percent signs and both slashes are percent-encoded."""
    return name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")


def plain_name(name: str) -> str:
    """A name as a client gives it: any escape sequence stands for its character.

    Clients must escape percent signs; one that begins no sequence stands for itself.
    """
    return urllib.parse.unquote(name)


def file_stem(name: str) -> str:
    """How files and folders of an entity of this name are called by vSphere itself."""
    stem = escaped_name(name).replace('"', "_").strip(" .")  # a descriptor cannot name a quote
    return stem.encode()[:FILE_STEM_BYTES_MAX].decode(errors="ignore").strip(" .") or "vm"
