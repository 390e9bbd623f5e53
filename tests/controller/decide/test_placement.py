import pytest

from holdfast_common.errors import Refused, UsageError
from holdfast_common.identity import AgentId, DatastoreId, RepositoryId
from holdfast_common.job_spec import TransportKind
from holdfast_controller.decide.placement import AgentFacts, DiskPlace, Placement, place

REPOSITORY = RepositoryId("r1")
NFS = DatastoreId("ds:///nfs/")
VMFS = DatastoreId("ds:///vmfs/")


def agent(**changes: object) -> AgentFacts:
    facts: dict[str, object] = {
        "agent_id": AgentId("a1"),
        "host_name": "proxy",
        "transports": tuple(TransportKind),
        "datastores": (NFS,),
        "writable_datastores": (NFS,),
        "repositories": (REPOSITORY,),
        "vm_instance_uuid": "proxy-vm",
    }
    facts.update(changes)
    return AgentFacts(**facts)  # type: ignore[arg-type]  # a test's shorthand


def choose(agents: list[AgentFacts], *datastores: DatastoreId, **more: object) -> Placement:
    disks = [
        DiskPlace(datastores=(store,), bus=str(more.pop("bus", "scsi"))) for store in datastores
    ]
    return place(
        agents=agents,
        disks=disks,
        vm_instance_uuid="vm",
        repository_id=REPOSITORY,
        **more,  # type: ignore[arg-type]  # a test's shorthand
    )


def test_direct_is_preferred_where_every_datastore_is_mapped() -> None:
    assert choose([agent()], NFS).transport is TransportKind.DIRECT


def test_hot_add_comes_next_and_the_record_says_why() -> None:
    placement = choose([agent()], NFS, VMFS)
    assert placement.transport is TransportKind.HOTADD
    assert "ds:///vmfs/ is not mapped" in placement.reason


def test_the_network_is_the_last_resort() -> None:
    assert choose([agent(vm_instance_uuid=None)], VMFS).transport is TransportKind.NFC


def test_ide_disks_and_the_proxy_itself_are_never_hot_added() -> None:
    assert choose([agent()], VMFS, bus="ide").transport is TransportKind.NFC
    assert choose([agent(vm_instance_uuid="vm")], VMFS).transport is TransportKind.NFC


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
