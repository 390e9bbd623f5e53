"""Commands about tags: categories, tags, and what they are attached to."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast_lab.control import Control, control_command
from holdfast_lab.datastores import Datastore
from holdfast_lab.faults import LabError
from holdfast_lab.hosts import Cluster, Host, ResourcePool
from holdfast_lab.inventory import Datacenter, Folder
from holdfast_lab.lab_object import ManagedEntity
from holdfast_lab.machine import Machine
from holdfast_lab.tags import MULTIPLE, SINGLE, Tag, TaggedObject, Tags

KINDS: Mapping[str, type[ManagedEntity]] = {
    "vm": Machine,
    "folder": Folder,
    "host": Host,
    "datastore": Datastore,
    "datacenter": Datacenter,
    "cluster": Cluster,
    "pool": ResourcePool,
}


@control_command("tag-category-add")
def add_category(control: Control) -> object:
    """Make a category: ``name``, ``single`` (one of its tags for each object), ``types`` (for what)."""
    arguments = control.arguments
    with control.lab.lock:
        made = _tags(control).add_category(
            arguments.text("name"),
            cardinality=SINGLE if arguments.flag("single") else MULTIPLE,
            types=[str(each) for each in arguments.optional("types", list) or []],
        )
        return {"id": made.identifier, "name": made.name}


@control_command("tag-add")
def add_tag(control: Control) -> object:
    """Make the tag ``name`` in ``category``."""
    with control.lab.lock:
        tags = _tags(control)
        category = tags.category_named(control.arguments.text("category"))
        return _shown(control, tags.add_tag(control.arguments.text("name"), category))


@control_command("tag-rename")
def rename_tag(control: Control) -> object:
    """Give ``tag`` the name ``to``."""
    with control.lab.lock:
        tag = _tag(control)
        control.lab.tags.rename_tag(tag, control.arguments.text("to"))
        return _shown(control, tag)


@control_command("tag-remove")
def remove_tag(control: Control) -> object:
    """Remove ``tag``."""
    with control.lab.lock:
        control.lab.tags.remove_tag(_tag(control))
    return None


@control_command("tag-attach")
def attach(control: Control) -> object:
    """Attach ``tag`` to the object ``name`` of ``kind`` (vm, folder, host, …)."""
    with control.lab.lock:
        tag = _tag(control)
        control.lab.tags.attach(tag, _carrier(control))
        return _shown(control, tag)


@control_command("tag-detach")
def detach(control: Control) -> object:
    """Take ``tag`` off the object ``name`` of ``kind``."""
    with control.lab.lock:
        tag = _tag(control)
        control.lab.tags.detach(tag, _carrier(control))
        return _shown(control, tag)


@control_command("tag-list")
def list_tags(control: Control) -> object:
    """Every tag, with the names of what carries it."""
    with control.lab.lock:
        return [_shown(control, each) for each in _tags(control).tags.values()]


def _tags(control: Control) -> Tags:
    if control.lab.mode == "host":
        raise LabError("a single host has no tags")
    return control.lab.tags


def _tag(control: Control) -> Tag:
    return _tags(control).named(control.arguments.text("tag"))


def _carrier(control: Control) -> TaggedObject:
    kind = control.arguments.optional("kind", str) or "vm"
    if kind not in KINDS:
        raise LabError(f"unknown kind of object {kind}; known: {', '.join(KINDS)}")
    found = control.lab.by_name(KINDS[kind], control.arguments.text("name"))
    return TaggedObject(str(found.ref._wsdlName), found.moid)


def _shown(control: Control, tag: Tag) -> dict[str, object]:
    carriers = [control.lab.objects[each.moid] for each in tag.objects]
    return {
        "id": tag.identifier,
        "category": tag.category.name,
        "name": tag.name,
        "objects": sorted(each.name for each in carriers if isinstance(each, ManagedEntity)),
    }
