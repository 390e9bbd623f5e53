"""Views: lists of entities that clients make and then read through the PropertyCollector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from holdfast_lab.lab_object import LabObject, ManagedEntity, wire_property
from holdfast_lab.method_registry import Call, soap_method

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab


class ContainerView(LabObject):
    """All entities of some types below a container, always up to date."""

    kind = vim.view.ContainerView

    def __init__(
        self, lab: Lab, moid: str, *, container: ManagedEntity, types: list[Any], recursive: bool
    ) -> None:
        super().__init__(lab, moid)
        self.container = container
        self.types = tuple(types)
        self.recursive = recursive

    @wire_property("container")
    def container_reference(self) -> object:
        return self.container.ref

    @wire_property("type")
    def type_names(self) -> object:
        return list(self.types)

    @wire_property("recursive")
    def is_recursive(self) -> object:
        return self.recursive

    @wire_property("view")
    def view(self) -> object:
        below = self.lab.walk(self.container) if self.recursive else self.container.children()
        references = {each.moid: each.ref for each in below}
        return [
            each for each in references.values() if not self.types or isinstance(each, self.types)
        ]


class ListView(LabObject):
    """A list that the client names itself."""

    kind = vim.view.ListView

    def __init__(self, lab: Lab, moid: str, *, references: list[Any]) -> None:
        super().__init__(lab, moid)
        self.references = {str(each._moId): each for each in references}

    @wire_property("view")
    def view(self) -> object:
        return list(self.references.values())


@soap_method("CreateContainerView")
def create_container_view(call: Call) -> object:
    container = call.lab.get(call.arguments.required("container", vim.ManagedEntity), ManagedEntity)
    view = ContainerView(
        call.lab,
        f"session[{call.session.key}]{call.lab.new_id('view')}",
        container=container,
        types=call.arguments.sequence("type", type),
        recursive=call.arguments.flag("recursive", default=False),
    )
    call.session.objects[view.moid] = view
    return view.ref


@soap_method("CreateListView")
def create_list_view(call: Call) -> object:
    view = ListView(
        call.lab,
        f"session[{call.session.key}]{call.lab.new_id('view')}",
        references=call.arguments.sequence("obj", object),
    )
    call.session.objects[view.moid] = view
    return view.ref


@soap_method("ModifyListView")
def modify_list_view(call: Call) -> object:
    view = call.lab.get(call.this, ListView, call.session)
    for each in call.arguments.sequence("remove", object):
        view.references.pop(str(getattr(each, "_moId", "")), None)
    _add(call, view)
    return []


@soap_method("ResetListView")
def reset_list_view(call: Call) -> object:
    view = call.lab.get(call.this, ListView, call.session)
    view.references.clear()
    for each in call.arguments.sequence("obj", object):
        view.references[str(getattr(each, "_moId", ""))] = each
    call.lab.touch(view)
    return []


def _add(call: Call, view: ListView) -> None:
    for each in call.arguments.sequence("add", object):
        view.references[str(getattr(each, "_moId", ""))] = each
    call.lab.touch(view)


@soap_method("DestroyView")
def destroy_view(call: Call) -> object:
    view = call.lab.find(call.this, call.session)
    call.session.objects.pop(view.moid, None)
    call.lab.touch(view)
    return None
