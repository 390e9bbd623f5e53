"""The VMs that an operator's request for a backup names now. Between `engine` and the inventory."""

from __future__ import annotations

from holdfast_common.errors import NothingProtected, UsageError
from holdfast_controller.decide.disk_choice import WantedDisks, names_disk
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.runs.world import World
from holdfast_controller.store.inventory import KnownVm


def chosen_vms(world: World, request: BackupRequest) -> list[KnownVm]:
    """Raises: NothingProtected, NotFound; UsageError when a name is in more than one vCenter."""
    chosen = world.vcenters.inventory.select(
        request.selectors, excludes=request.excludes, vcenter=request.vcenter
    )
    if request.vcenter:
        chosen = [known for known in chosen if known.vcenter_name == request.vcenter]
    names_seen: dict[str, str] = {}
    for known in chosen:
        exact = known.vm.name in request.selectors
        if exact and names_seen.setdefault(known.vm.name, known.vcenter_id) != known.vcenter_id:
            raise UsageError(
                "a VM of this name is in more than one vCenter",
                name=known.vm.name,
                advice="add --vcenter",
            )
    if not chosen:
        raise NothingProtected("no VM is selected", vcenter=request.vcenter)
    _check_disks(request.disks, chosen)
    return chosen


def _check_disks(wanted: WantedDisks, chosen: list[KnownVm]) -> None:
    """Who names disks means some of these: a slip of the pen must not save more, or less."""
    for selector in (*wanted.selectors, *wanted.excludes):
        if not any(names_disk(selector, disk) for known in chosen for disk in known.vm.disks):
            raise UsageError(
                "a selector names no disk of these VMs",
                selector=selector,
                advice="see `holdfast inventory show`",
            )
