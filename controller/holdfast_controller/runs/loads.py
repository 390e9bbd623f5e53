"""What a job weighs on, for `decide.load_limits`: from the inventory as it was seen last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from holdfast_common.identity import AgentId
from holdfast_common.job_spec import TransportKind
from holdfast_controller.configuration import StreamLimits
from holdfast_controller.decide.dispatch import Way
from holdfast_controller.decide.load_limits import LoadKey, LoadKind, LoadLimits, in_order
from holdfast_controller.decide.placement import Placement
from holdfast_controller.decide.selection import cluster_of_host
from holdfast_controller.store.inventory import KnownVm, Surroundings

PAUSE: Final = LoadKey(LoadKind.PAUSE, "", "by an operator")
BACKUPS: Final = LoadKey(LoadKind.WORK, "backup", "backups")
RESTORES: Final = LoadKey(LoadKind.WORK, "restore", "restores")
CHECKS: Final = LoadKey(LoadKind.WORK, "check", "checks and repairs")
PRUNES: Final = LoadKey(LoadKind.WORK, "prune", "prunes")  # one at a time; it may take hours


def stream_limits(backups_max: int, limits: StreamLimits) -> LoadLimits:
    """The limits as the controller's configuration says them."""
    each = {
        LoadKind.DATASTORE: limits.each_datastore,
        LoadKind.HOST: limits.each_host,
        LoadKind.CLUSTER: limits.each_cluster,
        LoadKind.PROXY: limits.each_proxy,
        LoadKind.NFC: limits.nfc_each_host,
    }
    named = {(LoadKind.WORK, BACKUPS.name): backups_max}
    named[LoadKind.WORK, RESTORES.name] = limits.restores
    named[LoadKind.WORK, CHECKS.name] = limits.checks
    named[LoadKind.WORK, PRUNES.name] = 1
    for kind, of_name in (
        (LoadKind.DATASTORE, limits.datastores),
        (LoadKind.HOST, limits.hosts),
        (LoadKind.CLUSTER, limits.clusters),
        (LoadKind.PROXY, limits.proxies),
    ):
        named |= {(kind, name): streams_max for name, streams_max in of_name.items()}
    return LoadLimits(
        each={kind: streams_max for kind, streams_max in each.items() if streams_max},
        named=named,
    )


def vcenter_gate(vcenter_id: str, name: str = "") -> LoadKey:
    """Shut until what an earlier life left there was looked after; an empty id: of jobs that concern no vCenter."""
    return LoadKey(LoadKind.VCENTER, vcenter_id, name)


def window_gate(policy_id: str, name: str = "") -> LoadKey:
    """Open while the policy's window is."""
    return LoadKey(LoadKind.WINDOW, policy_id, name)


def latency_gate(datastore_id: str, name: str = "") -> LoadKey:
    """Open while reads from the datastore take no longer than they may."""
    return LoadKey(LoadKind.LATENCY, datastore_id, name)


def keeping_gate(task: str) -> LoadKey:
    """Open while the window of that task is."""
    return LoadKey(LoadKind.KEEPING, task)


def agent_gate(agent_id: str, name: str = "") -> LoadKey:
    """Open while the agent is connected."""
    return LoadKey(LoadKind.AGENT, agent_id, name)


def backup_loads(
    around: Surroundings, known: KnownVm, *, braked: bool = False
) -> tuple[LoadKey, ...]:
    """What a VM's stream weighs on, whichever proxy reads it: every datastore of its disks, its host and its cluster.

    ``braked``: it waits for datastores that are slow as well.
    """
    vm = known.vm
    places = places_of(known)
    loads = set(places)
    if braked:
        loads |= {
            latency_gate(load.key, load.name) for load in places if load.kind is LoadKind.DATASTORE
        }
    cluster = cluster_of_host(vm.host_moref, around.hosts, around.places)
    if cluster:
        loads.add(LoadKey(LoadKind.CLUSTER, f"{known.vcenter_id}/{cluster}", cluster))
    return in_order((*loads, BACKUPS, PAUSE))


def places_of(known: KnownVm) -> frozenset[LoadKey]:
    """The host of a VM and the datastores of its disks: what another place of it changes."""
    datastores = {
        LoadKey(LoadKind.DATASTORE, link.datastore_id, link.datastore_name)
        for disk in known.vm.protected_disks
        for link in disk.chain
    }
    return frozenset((*datastores, _host(known)))


def ways_of(known: KnownVm, placements: Sequence[Placement]) -> tuple[Way, ...]:
    """The proxies that could do it, each with what that weighs on."""
    return tuple(
        Way(agent_id=AgentId(each.agent_id), loads=in_order(_way_loads(known, each)))
        for each in placements
    )


def _way_loads(known: KnownVm, placement: Placement) -> Iterable[LoadKey]:
    yield agent_gate(placement.agent_id, placement.host_name)
    yield LoadKey(LoadKind.PROXY, placement.agent_id, placement.host_name)
    if placement.transport is TransportKind.NFC:
        # one disk of each lane is open at a time, and one connection per open disk
        host = _host(known)
        yield LoadKey(LoadKind.NFC, host.key, host.name)


def _host(known: KnownVm) -> LoadKey:
    vm = known.vm
    return LoadKey(LoadKind.HOST, f"{known.vcenter_id}/{vm.host_moref}", vm.host_name)
