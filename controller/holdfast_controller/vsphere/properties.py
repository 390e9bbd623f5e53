"""Reading properties by dotted paths through the PropertyCollector, page by page.

Never by attribute access on managed objects: that is one call for each attribute, and it hides
whether something is unset or was not allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pyVmomi import vim, vmodl

from holdfast_common.errors import HoldfastError, SourceGone
from holdfast_controller.vsphere import faults
from holdfast_controller.vsphere.foreign import Foreign, Reference, unbound
from holdfast_controller.vsphere.session import VsphereSession

PAGE_OBJECTS: Final = 500  # objects of one answer; a VM with its devices is some 20 KiB
READS_OF_A_CHANGING_INVENTORY: Final = 3
Query = vmodl.query.PropertyCollector


@dataclass(frozen=True, slots=True)
class ObjectProperties:
    """What was read of one object; a path that is unset or not allowed is absent."""

    reference: Reference
    values: Mapping[str, Foreign]

    @property
    def moref(self) -> str:
        """Its id."""
        return str(self.reference._moId)


def read_one(
    session: VsphereSession, reference: Reference, paths: Sequence[str]
) -> Mapping[str, Foreign]:
    """Properties of one object. Raises: SourceGone when it does not exist."""
    found = read_many(session, [reference], paths)
    if not found:
        raise SourceGone("the object is no longer there", object=str(reference._moId))
    return found[0].values


def read_many(
    session: VsphereSession, references: Sequence[Foreign], paths: Sequence[str]
) -> list[ObjectProperties]:
    """Properties of objects of one kind. With several, those that are gone are left out.

    Raises: SourceGone when the only one is gone.
    """
    if not references:
        return []
    spec = Query.FilterSpec(
        objectSet=[Query.ObjectSpec(obj=unbound(each)) for each in references],
        propSet=[Query.PropertySpec(type=type(references[0]), all=False, pathSet=list(paths))],
    )
    try:
        return session.in_one_login(lambda: _retrieve(session, spec))
    except SourceGone:
        if len(references) == 1:
            raise
    found: list[ObjectProperties] = []
    for reference in references:
        try:
            found += read_many(session, [reference], paths)
        except SourceGone:
            continue
    return found


def read_everything(
    session: VsphereSession, paths: Mapping[type, Sequence[str]]
) -> list[ObjectProperties]:
    """Properties of every object of these kinds, in one call and its pages."""
    for attempt in range(READS_OF_A_CHANGING_INVENTORY):
        try:
            return session.in_one_login(lambda: _retrieve_view(session, paths))
        except SourceGone:
            # an object went while the view was read: the next view does not have it
            if attempt == READS_OF_A_CHANGING_INVENTORY - 1:
                raise
    raise AssertionError("the loop returns or raises")


def read_upwards(
    session: VsphereSession, references: Sequence[Reference], paths: Mapping[type, Sequence[str]]
) -> list[ObjectProperties]:
    """Properties of these objects and of all that they lie in, as far as of these kinds, in one call.

    Raises: SourceGone when one of them is gone.
    """
    up = Query.TraversalSpec(
        name="up",
        type=vim.ManagedEntity,
        path="parent",
        skip=False,
        selectSet=[Query.SelectionSpec(name="up")],
    )
    # a specification for each: within one its selections' names would have to differ
    specs = [
        Query.FilterSpec(
            objectSet=[Query.ObjectSpec(obj=unbound(each), selectSet=[up])],
            propSet=_wanted(paths),
        )
        for each in references
    ]
    if not specs:
        return []
    found = session.in_one_login(lambda: _retrieve(session, *specs))
    return list({each.moref: each for each in found}.values())


def _wanted(paths: Mapping[type, Sequence[str]]) -> list[Foreign]:
    return [
        Query.PropertySpec(type=kind, all=False, pathSet=list(names))
        for kind, names in paths.items()
    ]


def _retrieve_view(
    session: VsphereSession, paths: Mapping[type, Sequence[str]]
) -> list[ObjectProperties]:
    content = session.content()
    view = session.call_in_login(
        content.viewManager,
        "CreateContainerView",
        container=content.rootFolder,
        type=list(paths),
        recursive=True,
    )
    through = Query.TraversalSpec(name="view", path="view", skip=False, type=vim.view.ContainerView)
    spec = Query.FilterSpec(
        objectSet=[Query.ObjectSpec(obj=view, skip=True, selectSet=[through])],
        propSet=_wanted(paths),
    )
    found = _retrieve(session, spec)
    session.call_in_login(view, "DestroyView")
    return found


def _retrieve(session: VsphereSession, *specs: Foreign) -> list[ObjectProperties]:
    collector = session.collector()
    options = Query.RetrieveOptions(maxObjects=PAGE_OBJECTS)
    page = session.call_in_login(
        collector, "RetrievePropertiesEx", specSet=list(specs), options=options
    )
    found: list[ObjectProperties] = []
    while page is not None:
        found += _objects(page.objects or [])
        if not page.token:
            break
        page = session.call_in_login(collector, "ContinueRetrievePropertiesEx", token=page.token)
    return found


def _objects(contents: Iterable[Foreign]) -> list[ObjectProperties]:
    found = []
    for content in contents:
        for missing in content.missingSet or []:
            _check_missing(content.obj, missing)
        values = {str(each.name): each.val for each in content.propSet or []}
        found.append(ObjectProperties(unbound(content.obj), values))
    return found


def _check_missing(reference: Reference, missing: Foreign) -> None:
    """A property that is not allowed is absent; a lost login or object is an error."""
    fault = missing.fault
    if faults.is_not_authenticated(fault):
        raise faults.SessionLost("the login at vSphere ended", path=str(missing.path))
    if isinstance(fault, vmodl.fault.ManagedObjectNotFound):
        error: HoldfastError = faults.translated(
            fault, what=f"reading {missing.path}", moref=str(reference._moId)
        )
        raise error
