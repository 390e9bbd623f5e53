"""What a property filter selects, and what changed in it since a version.

A filter keeps, for each object and each property, the stamp of its last change. Stamps count up
within one collector; a version that a client holds is the stamp up to which it has seen everything.
So an answer that was lost can be asked for again, and a truncated one goes on where it ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyVmomi import VmomiSupport, vmodl

from holdfast_lab import soap
from holdfast_lab.faults import SoapFault, invalid_argument
from holdfast_lab.property_paths import PropertyReader, check_path, read_path
from holdfast_lab.wire_types import WireObject

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab
    from holdfast_lab.sessions import Session

PC = vmodl.query.PropertyCollector
SELECTED_MAX = 100_000


@dataclass(slots=True, kw_only=True)
class Selected:
    """One object of an answer: which paths of it were asked for."""

    reference: Any
    paths: tuple[str, ...]


def check_spec(lab: Lab, spec: PC.FilterSpec, session: Session) -> None:
    """Raises: SoapFault for an unknown property, an unknown start object or a bad selection."""
    for wanted in spec.propSet:
        for path in wanted.pathSet:
            check_path(wanted.type, path)
    for start in spec.objectSet:
        if not spec.reportMissingObjectsInResults:
            lab.find(start.obj, session)
        list(_named_selections(start.selectSet, {}))


def select(lab: Lab, spec: PC.FilterSpec, session: Session) -> list[Selected]:
    """The objects that a filter covers now, in the order they are met. Needs ``Lab.lock``.

    Raises: SoapFault (ManagedObjectNotFound, InvalidArgument).
    """
    found: dict[str, WireObject] = {}
    for start in spec.objectSet:
        named: dict[str, WireObject] = {}
        list(_named_selections(start.selectSet, named))
        try:
            lab.find(start.obj, session)
        except SoapFault:
            if spec.reportMissingObjectsInResults:
                continue
            raise
        walk = _Walk(lab, session, named, found)
        walk.visit(start.obj, start.selectSet, skips=bool(start.skip))
    selected = []
    for reference in found.values():
        paths = paths_for(lab, spec.propSet, reference, session)
        if paths is not None:
            selected.append(Selected(reference=reference, paths=paths))
    return selected


def paths_for(
    lab: Lab, wanted: list[PC.PropertySpec], reference: WireObject, session: Session
) -> tuple[str, ...] | None:
    """The paths asked for of one object; None when its type is not asked for at all."""
    paths: list[str] | None = None
    for spec in wanted:
        if not isinstance(reference, spec.type):
            continue
        paths = paths or []
        if spec.all:
            paths.extend(lab.find(reference, session).readers)
        else:
            paths.extend(spec.pathSet)
    return None if paths is None else tuple(dict.fromkeys(paths))


def _named_selections(selections: list[Any], named: dict[str, Any]) -> Iterator[Any]:
    for each in selections or []:
        if isinstance(each, PC.TraversalSpec):
            if each.name:
                named[each.name] = each
            check_path(each.type, each.path)
            yield from _named_selections(each.selectSet, named)
        yield each


@dataclass(slots=True)
class _Walk:
    """One walk along the traversals of a specification; collects what it meets."""

    lab: Lab
    session: Session
    named: dict[str, WireObject]
    found: dict[str, WireObject]
    seen: set[tuple[str, int]] = field(default_factory=set)

    def visit(self, reference: WireObject, selections: list[WireObject], *, skips: bool) -> None:
        """Take this object, unless it is skipped, and go on from it."""
        if not skips:
            self.found.setdefault(str(reference._moId), reference)
        if len(self.found) > SELECTED_MAX:
            raise invalid_argument("specSet", "too many objects are selected")
        for each in selections or []:
            is_traversal = isinstance(each, PC.TraversalSpec)
            traversal = each if is_traversal else self.named.get(each.name)
            if traversal is None:
                raise invalid_argument("selectSet", f"no selection is named {each.name}")
            step = (str(reference._moId), id(traversal))
            if step in self.seen or not isinstance(reference, traversal.type):
                continue
            self.seen.add(step)
            for target in _targets(self.lab, self.session, reference, traversal.path):
                self.visit(target, traversal.selectSet, skips=bool(traversal.skip))


def _targets(lab: Lab, session: Session, reference: WireObject, path: str) -> list[Any]:
    try:
        value = read_path(lab, reference, path, session)
    except SoapFault:
        return []  # it went away between two steps
    values = value if isinstance(value, list) else [value]
    return [
        each
        for each in values
        if isinstance(each, VmomiSupport.ManagedObject) and _exists(lab, each, session)
    ]


def _exists(lab: Lab, reference: WireObject, session: Session) -> bool:
    try:
        lab.find(reference, session)
    except SoapFault:
        return False
    return True


def content_of(lab: Lab, selected: Selected, session: Session) -> PC.ObjectContent:
    """One object's properties; those that cannot be read are named in the missing set."""
    content = PC.ObjectContent(obj=selected.reference, propSet=[], missingSet=[])
    properties, missing = [], []
    reader = PropertyReader(lab, session)
    for path in selected.paths:
        try:
            value = reader.read(selected.reference, path)
        except SoapFault as fault:
            if isinstance(fault.fault, vmodl.query.InvalidProperty):
                raise
            missing.append(PC.MissingProperty(path=path, fault=fault.fault))
            continue
        if value is not None:
            properties.append(vmodl.DynamicProperty(name=path, val=value))
    content.propSet = properties
    content.missingSet = missing
    return content


@dataclass(slots=True)
class Known:
    """What a filter last saw of one object. ``texts`` holds each property as written, or None."""

    reference: Any
    entered: int
    changed: int
    texts: dict[str, str | None] = field(default_factory=dict)
    stamps: dict[str, int] = field(default_factory=dict)
    lab_version: int = 0


@dataclass(slots=True)
class PendingUpdate:
    """One object's change, with the stamp that orders it."""

    stamp: int
    update: PC.ObjectUpdate


class FilterState:
    """The memory of one filter."""

    def __init__(self, spec: PC.FilterSpec) -> None:
        self.spec = spec
        self.known: dict[str, Known] = {}
        self.left: dict[str, Known] = {}
        self.seen_version = -1

    def refresh(self, lab: Lab, session: Session, stamp: int) -> int:
        """Compare with the lab as it is now; stamp what changed. Needs ``Lab.lock``.

        Returns the last stamp used. Costs nothing while the lab has not changed.
        """
        if self.seen_version == lab.version:
            return stamp
        present = set()
        for selected in select(lab, self._tolerant_spec(), session):
            moid = str(selected.reference._moId)
            present.add(moid)
            stamp = self._compare(lab, session, selected, moid, stamp)
        for moid in [each for each in self.known if each not in present]:
            gone = self.known.pop(moid)
            stamp += 1
            gone.changed = stamp
            self.left[moid] = gone
        self.seen_version = lab.version
        return stamp

    def _tolerant_spec(self) -> PC.FilterSpec:
        """A start object that was deleted later leaves the filter; it is no fault."""
        self.spec.reportMissingObjectsInResults = True
        return self.spec

    def _compare(
        self, lab: Lab, session: Session, selected: Selected, moid: str, stamp: int
    ) -> int:
        version = lab.find(selected.reference, session).version
        known = self.known.get(moid)
        if known is not None and known.lab_version == version and _is_plain(selected.paths):
            return stamp
        enters = known is None
        if known is None:
            stamp += 1
            known = Known(reference=selected.reference, entered=stamp, changed=stamp)
            self.known[moid] = known
            self.left.pop(moid, None)
        known.lab_version = version
        changed = []
        reader = PropertyReader(lab, session)
        for path in selected.paths:
            text = soap.value_text(_value(reader, selected.reference, path), object)
            if path not in known.texts or known.texts[path] != text:
                known.texts[path] = text
                changed.append(path)
        if changed and not enters:
            stamp += 1
            known.changed = stamp
        known.stamps.update(dict.fromkeys(changed, known.changed))
        return stamp

    def updates_after(self, lab: Lab, session: Session, stamp: int) -> list[PendingUpdate]:
        """What a client that has seen everything up to ``stamp`` does not know yet."""
        pending = []
        for known in self.known.values():
            if known.changed <= stamp:
                continue
            entered = known.entered > stamp
            paths = [each for each, at in known.stamps.items() if at > stamp or entered]
            reader = PropertyReader(lab, session)
            changes = [
                PC.Change(name=path, op="assign", val=_value(reader, known.reference, path))
                for path in paths
                if not entered or known.texts[path]
            ]
            update = PC.ObjectUpdate(
                kind="enter" if entered else "modify", obj=known.reference, changeSet=changes
            )
            pending.append(PendingUpdate(known.changed, update))
        for known in self.left.values():
            if known.changed > stamp >= known.entered:
                update = PC.ObjectUpdate(kind="leave", obj=known.reference)
                pending.append(PendingUpdate(known.changed, update))
        return pending


def _is_plain(paths: tuple[str, ...]) -> bool:
    """Whether an object's own version tells all: views and datastores depend on others."""
    return not any(path in DEPENDENT_PROPERTIES for path in paths)


# properties whose value changes with other objects than their own
DEPENDENT_PROPERTIES = frozenset(
    {
        "view",
        "vm",
        "host",
        "datastore",
        "childEntity",
        "resourcePool",
        "recentTask",
        "currentSession",
    }
)


def _value(reader: PropertyReader, reference: WireObject, path: str) -> object:
    try:
        return reader.read(reference, path)
    except SoapFault:
        return None
