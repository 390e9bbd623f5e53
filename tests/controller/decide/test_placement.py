from dataclasses import replace
from typing import Any

import pytest

from holdfast_common.errors import Refused, UsageError
from holdfast_common.identity import AgentId, DatastoreId, RepositoryId
from holdfast_common.job_spec import TransportKind
from holdfast_controller.decide.hot_add import IDE, DatastoreSeen, ProxyVm
from holdfast_controller.decide.placement import (
    AgentFacts,
    DiskPlace,
    Placement,
    WantedReach,
    disk_places,
    place,
)
from holdfast_controller.facts import ChainLink, DatastoreFacts, DiskFacts, HostFacts, VmFacts

REPOSITORY = RepositoryId("r1")
NFS = DatastoreId("ds:///nfs/")
VMFS = DatastoreId("ds:///vmfs/")


PROXY = ProxyVm(
    moref="vm-9",
    instance_uuid="proxy-vm",
    power_state="poweredOn",
    connection_state="connected",
    host_moref="host-1",
    datacenter_moref="dc-1",
    host_datastore_morefs=("ds-1", "ds-2"),
)


def agent(**changes: object) -> AgentFacts:
    facts: dict[str, object] = {
        "agent_id": AgentId("a1"),
        "host_name": "proxy",
        "transports": tuple(TransportKind),
        "datastores": (NFS,),
        "writable_datastores": (NFS,),
        "repositories": (REPOSITORY,),
        "vm": PROXY,
    }
    facts.update(changes)
    return AgentFacts(**facts)  # type: ignore[arg-type]  # a test's shorthand


def choose(
    agents: list[AgentFacts],
    *datastores: DatastoreId,
    wanted_transport: str = "",
    **more: object,
) -> Placement:
    disk = {"seen": more.pop("seen", ()), "hot_add_problem": more.pop("hot_add_problem", "")}
    reach: dict[str, object] = {"vm_instance_uuid": "vm", "datacenter_moref": "dc-1", **more}
    return place(
        agents=agents,
        reach=WantedReach(
            disks=[DiskPlace(datastores=(store,), **disk) for store in datastores],  # type: ignore[arg-type]  # a test's shorthand
            repository_id=REPOSITORY,
            **reach,  # type: ignore[arg-type]  # a test's shorthand
        ),
        wanted_transport=wanted_transport,
    )


def test_direct_is_preferred_where_every_datastore_is_mapped() -> None:
    assert choose([agent()], NFS).transport is TransportKind.DIRECT


def test_hot_add_comes_next_and_the_record_says_why() -> None:
    placement = choose([agent()], NFS, VMFS)
    assert placement.transport is TransportKind.HOTADD
    assert "ds:///vmfs/ is not mapped" in placement.reason


def test_the_network_is_the_last_resort() -> None:
    assert choose([agent(vm=None)], VMFS).transport is TransportKind.NFC


def test_ide_disks_and_the_proxy_itself_are_never_hot_added() -> None:
    assert choose([agent()], VMFS, hot_add_problem=IDE).transport is TransportKind.NFC
    itself = agent(vm=replace(PROXY, instance_uuid="vm"))
    assert choose([itself], VMFS).transport is TransportKind.NFC


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"power_state": "poweredOff"}, "the proxy is poweredOff"),
        ({"connection_state": "disconnected"}, "disconnected"),
        ({"datacenter_moref": "dc-2"}, "another datacenter"),
        ({"host_datastore_morefs": ("ds-1",)}, "does not see datastore vmfs"),
    ],
)
def test_rule_21_a_proxy_that_would_be_refused_when_disks_are_attached_is_not_chosen_for_it(
    change: dict[str, Any], why: str
) -> None:
    seen = (DatastoreSeen(moref="ds-2", name="vmfs"),)
    assert choose([agent()], VMFS, seen=seen).transport is TransportKind.HOTADD
    unfit = agent(vm=replace(PROXY, **change))
    placement = choose([unfit], VMFS, seen=seen)
    assert placement.transport is TransportKind.NFC
    assert why in placement.reason
    fit = agent(agent_id=AgentId("a2"), host_name="other")
    assert choose([unfit, fit], VMFS, seen=seen).agent_id == "a2"
    with pytest.raises(Refused, match=why):
        choose([unfit], VMFS, seen=seen, wanted_transport="hotadd")


def test_what_is_not_known_of_a_proxy_forbids_nothing() -> None:
    unknown = agent(vm=replace(PROXY, datacenter_moref="", host_datastore_morefs=()))
    seen = (DatastoreSeen(moref="ds-2", name="vmfs"),)
    assert choose([unknown], VMFS, seen=seen).transport is TransportKind.HOTADD


def test_the_choice_keeps_the_proxys_own_vm() -> None:
    assert choose([agent()], VMFS).proxy_instance_uuid == "proxy-vm"
    assert choose([agent(vm=None)], VMFS).proxy_instance_uuid == ""


def test_a_transport_that_was_asked_for_is_never_silently_replaced() -> None:
    with pytest.raises(Refused, match="is not mapped on it"):
        choose([agent()], VMFS, wanted_transport="direct")


def test_writing_needs_a_writable_datastore() -> None:
    read_only = agent(writable_datastores=())
    with pytest.raises(Refused, match="is not writable"):
        choose([read_only], NFS, wanted_transport="direct", writing=True)


def test_an_agent_that_does_not_reach_the_repository_is_not_chosen() -> None:
    with pytest.raises(Refused, match="does not reach the repository"):
        choose([agent(repositories=())], NFS)


def test_no_agent_and_an_unknown_transport_are_told_apart() -> None:
    with pytest.raises(Refused, match="no proxy agent is connected"):
        choose([], NFS)
    with pytest.raises(UsageError, match="unknown transport"):
        choose([agent()], NFS, wanted_transport="san")


# -- rule 21: hot-add of a running VM's disk on NFS 3 only from its own host --------------------

LINK = ChainLink(datastore_id=NFS, datastore_moref="ds-1", datastore_name="nfs", path="web/w.vmdk")
NFS_STORE = DatastoreFacts(
    moref="ds-1",
    datastore_id=NFS,
    name="nfs",
    kind="NFS",
    capacity_bytes=1,
    free_bytes=1,
    accessible=True,
    datacenter_moref="dc-1",
)
HOST = HostFacts(
    moref="host-1",
    name="esx1",
    connection_state="connected",
    in_maintenance=False,
    version="8.0.1",
    build="21495797",
    compute_moref="c-1",
    hardware_uuid="",
    certificate_sha256="",
    datastore_morefs=("ds-1",),
)


WEB = VmFacts(
    moref="vm-1",
    name="web",
    instance_uuid="vm",
    bios_uuid="42aa",
    place="/dc1",
    folder_moref="group-v1",
    host_moref="host-1",
    host_name="esx1",
    pool_moref="resgroup-1",
    datacenter_moref="dc-1",
    datastore_names=("nfs",),
    power_state="poweredOn",
    connection_state="connected",
    template=False,
    hardware_version=19,
    guest_id="debian12_64Guest",
    guest_name="Debian",
    firmware="bios",
    tools_running="",
    tools_version_status="",
    change_tracking_supported=True,
    change_tracking_enabled=False,
    consolidation_needed=False,
    encrypted=False,
    has_vtpm=False,
    fault_tolerant=False,
    memory_mb=512,
    cpu_count=1,
    vmx=None,
    snapshots=(),
    current_snapshot_moref="",
    disks=(
        DiskFacts(
            device_key=2000,
            backing_uuid="6000C29",
            label="Hard disk 1",
            capacity_bytes=1 << 30,
            sector_bytes=512,
            chain=(LINK,),
            change_id="",
            mode="persistent",
            sharing="sharingNone",
            thin=True,
            raw_mapping="",
            encrypted=False,
            controller_key=1000,
            bus_number=0,
            unit_number=0,
            adapter="pvscsi",
            bus_sharing="noSharing",
            unprotected_reason="",
        ),
    ),
)


def places(
    vm: VmFacts, *, kind: str = "NFS", version: str = "8.0.1", build: str = "1"
) -> list[str]:
    found = disk_places(
        vm, [replace(NFS_STORE, kind=kind)], [replace(HOST, version=version, build=build)]
    )
    return [each.hot_add_host for each in found]


def test_rule_21_a_running_vms_disk_on_nfs_3_is_hot_added_on_its_own_host_only() -> None:
    assert places(WEB) == ["host-1"]
    disks = disk_places(WEB, [NFS_STORE], [HOST])
    for proxy_host, wanted in (("host-1", TransportKind.HOTADD), ("host-2", TransportKind.NFC)):
        placement = place(
            agents=[agent(datastores=(), vm=replace(PROXY, host_moref=proxy_host))],
            reach=WantedReach(disks=disks, repository_id=REPOSITORY, vm_instance_uuid="vm"),
        )
        assert placement.transport is wanted
    assert "NFS 3" in placement.reason


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"adapter": "ide"}, "Hard disk 1: IDE disks"),
        ({"raw_mapping": "virtual"}, "raw device mappings"),
        ({"backing_uuid": ""}, "it has no uuid"),
        ({"chain": ()}, "no file to attach"),
    ],
)
def test_rule_21_a_disk_that_cannot_be_attached_goes_over_the_network(
    change: dict[str, Any], why: str
) -> None:
    vm = replace(WEB, disks=(replace(WEB.disks[0], **change),))
    placement = place(
        agents=[agent(transports=(TransportKind.HOTADD, TransportKind.NFC))],
        reach=WantedReach(
            disks=disk_places(vm, [NFS_STORE], [HOST]),
            repository_id=REPOSITORY,
            vm_instance_uuid="vm",
        ),
    )
    assert placement.transport is TransportKind.NFC
    assert why in placement.reason


def test_rule_21_other_storage_newer_hosts_and_vms_that_are_off_may_be_anywhere() -> None:
    assert places(WEB, kind="NFS41") == places(WEB, kind="VMFS") == [""]
    assert places(replace(WEB, power_state="poweredOff")) == [""]
    assert places(WEB, version="8.0.2", build="23305545") == ["host-1"]
    assert places(WEB, version="8.0.2", build="23305546") == [""]
    assert places(WEB, version="8.0.3") == places(WEB, version="9.0.0") == [""]
    assert places(WEB, version="7.0.3", build="99999999") == ["host-1"]


def test_a_proxys_own_vm_is_read_by_another_one_and_by_itself_over_the_network_at_last() -> None:
    own = agent(host_name="own", vm=replace(PROXY, instance_uuid="vm"))
    other = agent(agent_id=AgentId("a2"), host_name="other", datastores=())
    assert choose([own], NFS).transport is TransportKind.NFC
    assert "no other proxy can" in choose([own], NFS).reason
    chosen = choose([own, other], NFS)
    assert (chosen.host_name, chosen.transport) == ("other", TransportKind.HOTADD)
    chosen = choose([own, other], NFS, wanted_transport="nfc")
    assert (chosen.host_name, chosen.transport) == ("other", TransportKind.NFC)
    with pytest.raises(Refused, match="does not open itself"):
        choose([own], NFS, wanted_transport="direct")
