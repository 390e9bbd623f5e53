"""PropertyCollector: reading many properties in one call, and waiting for their changes.

Collectors and filters belong to a session. The waiting is on ``Lab.changed``: nothing polls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyVmomi import vim, vmodl

from holdfast_lab.faults import ConnectionCut, SoapFault, invalid_argument
from holdfast_lab.lab_clock import monotonic_seconds
from holdfast_lab.lab_object import LabObject, wire_property
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.property_filters import (
    FilterState,
    PendingUpdate,
    Selected,
    check_spec,
    content_of,
    select,
)

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab
    from holdfast_lab.sessions import Session

PC = vmodl.query.PropertyCollector
WAIT_SECONDS_MAX = 1800.0  # without a limit of the client's own; as vCenter does
LIVENESS_SECONDS = 5.0  # how often a waiting call looks whether its client is still there
PUBLIC_MOIDS = ("ServiceInstance",)


class PropertyFilter(LabObject):
    """A filter that a client made; gone when it is destroyed or its session ends."""

    kind = PC.Filter

    def __init__(
        self, lab: Lab, moid: str, *, collector: Collector, state: FilterState, partial: bool
    ) -> None:
        super().__init__(lab, moid)
        self.collector = collector
        self.state = state
        self.partial = partial

    @wire_property("spec")
    def spec(self) -> object:
        return self.state.spec

    @wire_property("partialUpdates")
    def partial_updates(self) -> object:
        return self.partial

    def forget(self) -> None:
        """Take the filter off its collector."""
        self.collector.filters.pop(self.moid, None)


class Collector(LabObject):
    """One session's collector: its filters, the stamp of the last change, reads in pages."""

    kind = PC

    def __init__(self, lab: Lab, moid: str, session: Session) -> None:
        super().__init__(lab, moid)
        self.session = session
        self.filters: dict[str, PropertyFilter] = {}
        self.stamp = 0
        self.cancelled = 0
        self.destroyed = False
        self.pages: dict[str, list[Selected]] = {}

    @wire_property("filter")
    def filter_references(self) -> object:
        return [each.ref for each in self.filters.values()]

    def forget(self) -> None:
        """Drop all filters and wake whoever waits."""
        self.destroyed = True
        for each in list(self.filters.values()):
            self.session.objects.pop(each.moid, None)
        self.filters.clear()
        self.lab.changed.notify_all()

    def pending(self, stamp: int) -> list[tuple[PropertyFilter, PendingUpdate]]:
        """All updates after ``stamp``, oldest first."""
        found = []
        for each in self.filters.values():
            self.stamp = each.state.refresh(self.lab, self.session, self.stamp)
        for each in self.filters.values():
            found += [
                (each, update) for update in each.state.updates_after(self.lab, self.session, stamp)
            ]
        return sorted(found, key=lambda pair: pair[1].stamp)


class DefaultCollector(LabObject):
    """The collector that every session starts with; stands for each session's own."""

    kind = PC


def collector_of(call: Call) -> Collector:
    """The session's own collector behind the reference that was called."""
    moid = str(call.this._moId)
    owned = call.session.objects.get(f"collector {moid}") or call.session.objects.get(moid)
    if isinstance(owned, Collector):
        return owned
    made = Collector(call.lab, moid, call.session)
    # the default collector's id is the lab's own: each session keeps its state under another key
    call.session.objects[f"collector {moid}"] = made
    return made


@soap_method("CreatePropertyCollector")
def create_property_collector(call: Call) -> object:
    made = Collector(call.lab, f"session[{call.session.key}]{call.lab.new_id('pc')}", call.session)
    call.session.objects[made.moid] = made
    return made.ref


@soap_method("DestroyPropertyCollector")
def destroy_property_collector(call: Call) -> object:
    collector = collector_of(call)
    if collector.moid not in call.session.objects:
        raise SoapFault(vmodl.fault.NotSupported(), "the default collector cannot be destroyed")
    collector.forget()
    del call.session.objects[collector.moid]
    return None


@soap_method("RetrievePropertiesEx")
def retrieve_properties_ex(call: Call) -> object:
    options = call.arguments.optional("options", PC.RetrieveOptions)
    limit = options.maxObjects if options is not None else None
    selected = _selected(call)
    return _page(call, collector_of(call), selected, limit)


@soap_method("RetrieveProperties")
def retrieve_properties(call: Call) -> object:
    return [content_of(call.lab, each, call.session) for each in _selected(call)]


@soap_method("ContinueRetrievePropertiesEx")
def continue_retrieve_properties_ex(call: Call) -> object:
    collector = collector_of(call)
    token = call.arguments.text("token")
    rest = collector.pages.pop(token, None)
    if rest is None:
        raise invalid_argument("token", "no read goes on under this token")
    limit = int(token.rsplit("-", 1)[-1])
    return _page(call, collector, rest, limit)


@soap_method("CancelRetrievePropertiesEx")
def cancel_retrieve_properties_ex(call: Call) -> object:
    if collector_of(call).pages.pop(call.arguments.text("token"), None) is None:
        raise invalid_argument("token", "no read goes on under this token")
    return None


def _selected(call: Call) -> list[Selected]:
    specs = call.arguments.sequence("specSet", PC.FilterSpec)
    if call.session.user is None:
        for spec in specs:
            for start in spec.objectSet:
                if start.obj._moId not in PUBLIC_MOIDS or start.selectSet:
                    raise SoapFault(
                        vim.fault.NotAuthenticated(object=start.obj, privilegeId="System.View"),
                        "The session is not authenticated.",
                    )
    found: list[Selected] = []
    for spec in specs:
        check_spec(call.lab, spec, call.session)
        found += select(call.lab, spec, call.session)
    return found


def _page(call: Call, collector: Collector, selected: list[Selected], limit: int | None) -> object:
    if limit is not None and limit <= 0:
        raise invalid_argument("options.maxObjects")
    now, rest = (selected, []) if limit is None else (selected[:limit], selected[limit:])
    contents = []
    for each in now:
        try:
            contents.append(content_of(call.lab, each, call.session))
        except SoapFault as fault:
            if isinstance(fault.fault, vmodl.fault.ManagedObjectNotFound):
                continue  # it went away between two pages
            raise
    if not contents and not rest:
        return None
    result = PC.RetrieveResult(objects=contents)
    if rest:
        result.token = f"{call.lab.new_id('page')}-{limit}"
        collector.pages[str(result.token)] = rest
    return result


@soap_method("CreateFilter")
def create_filter(call: Call) -> object:
    spec = call.arguments.required("spec", PC.FilterSpec)
    check_spec(call.lab, spec, call.session)
    collector = collector_of(call)
    made = PropertyFilter(
        call.lab,
        f"session[{call.session.key}]{call.lab.new_id('filter')}",
        collector=collector,
        state=FilterState(spec),
        partial=call.arguments.flag("partialUpdates", default=False),
    )
    collector.filters[made.moid] = made
    call.session.objects[made.moid] = made
    call.lab.changed.notify_all()
    return made.ref


@soap_method("DestroyPropertyFilter")
def destroy_property_filter(call: Call) -> object:
    made = call.lab.get(call.this, PropertyFilter, call.session)
    made.forget()
    del call.session.objects[made.moid]
    call.lab.changed.notify_all()
    return None


@soap_method("WaitForUpdatesEx", locked=False)
def wait_for_updates_ex(call: Call) -> object:
    options = call.arguments.optional("options", PC.WaitOptions)
    seconds = options.maxWaitSeconds if options is not None else None
    limit = options.maxObjectUpdates if options is not None else None
    if (seconds is not None and seconds < 0) or (limit is not None and limit <= 0):
        raise invalid_argument("options")
    return wait(call, seconds, limit)


@soap_method("WaitForUpdates", locked=False)
def wait_for_updates(call: Call) -> object:
    return wait(call, None, None)


@soap_method("CheckForUpdates", locked=False)
def check_for_updates(call: Call) -> object:
    return wait(call, 0, None)


@soap_method("CancelWaitForUpdates")
def cancel_wait_for_updates(call: Call) -> object:
    collector_of(call).cancelled += 1
    call.lab.changed.notify_all()
    return None


def wait(call: Call, seconds: int | None, limit: int | None) -> PC.UpdateSet | None:
    """Wait until there are updates after the client's version; None when time is up.

    Raises: SoapFault: RequestCanceled, NotAuthenticated when the session ended meanwhile,
    InvalidCollectorVersion; ConnectionCut when the client went away.
    """
    lab = call.lab
    end = monotonic_seconds() + (WAIT_SECONDS_MAX if seconds is None else float(seconds))
    with lab.lock:
        collector = collector_of(call)
        stamp = _stamp_of_version(collector, call.arguments.text("version"))
        cancelled = collector.cancelled
        while True:
            _check_still_wanted(call, collector, cancelled)
            pending = collector.pending(stamp)
            if pending:
                return _update_set(pending, limit)
            left = end - monotonic_seconds()
            if left <= 0 or lab.stopping.is_set():
                return None
            if not lab.changed.wait(min(left, LIVENESS_SECONDS)) and call.exchange.client_gone():
                raise ConnectionCut("the client of a waiting call went away")


def _stamp_of_version(collector: Collector, version: str) -> int:
    if not version:
        return 0
    if not version.isdecimal() or int(version) > collector.stamp:
        raise SoapFault(
            vmodl.query.InvalidCollectorVersion(), f"version {version} was never given out"
        )
    return int(version)


def _check_still_wanted(call: Call, collector: Collector, cancelled: int) -> None:
    if not call.session.alive:
        raise SoapFault(
            vim.fault.NotAuthenticated(object=call.this, privilegeId="System.View"),
            "The session is not authenticated.",
        )
    if collector.destroyed or collector.cancelled != cancelled:
        raise SoapFault(vmodl.fault.RequestCanceled(), "The request was canceled.")


def _update_set(
    pending: list[tuple[PropertyFilter, PendingUpdate]], limit: int | None
) -> PC.UpdateSet:
    chosen = pending if limit is None else pending[:limit]
    by_filter: dict[str, PC.FilterUpdate] = {}
    for each, update in chosen:
        made = by_filter.setdefault(each.moid, PC.FilterUpdate(filter=each.ref, objectSet=[]))
        made.objectSet = [*made.objectSet, update.update]
    return PC.UpdateSet(
        version=str(chosen[-1][1].stamp),
        filterSet=list(by_filter.values()),
        truncated=len(chosen) < len(pending),
    )
