import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import UsageError
from holdfast_common.extents import Extent
from holdfast_common.identity import (
    DatastoreId,
    JobId,
    LineageId,
    PointId,
    RepositoryId,
    RunId,
    new_ulid,
)
from holdfast_common.job_result import (
    DamageFound,
    DiskResult,
    ErrorReport,
    JobResult,
    Outcome,
    PointFound,
    Warned,
)
from holdfast_common.job_spec import (
    AreaSource,
    BackUpDisks,
    Blob,
    ChainFile,
    CheckNewFile,
    CheckRepository,
    Consistency,
    DirectTicket,
    DiskTicket,
    DiskToBackUp,
    DiskToRestore,
    FileFormat,
    FileTicket,
    HotAddTicket,
    JobSpec,
    ListPoints,
    NfcTicket,
    RepairRepository,
    RestoreDisks,
    TransportKind,
    VerifyDisks,
    VmIdentity,
    Work,
)
from holdfast_common.logs import Secret
from holdfast_common.point_record import DiskRecord, PointRecord
from holdfast_common.wire import job_pb2, session_pb2
from holdfast_common.wire_codec.results import (
    PIECE_RANGES_MAX,
    damage_pieces,
    damage_to_message,
    job_result_from_message,
    job_result_to_message,
)
from holdfast_common.wire_codec.specs import (
    job_spec_from_message,
    job_spec_to_message,
    spec_digest,
)
from holdfast_common.wire_codec.tickets import ticket_from_message, ticket_to_message
from holdfast_common.wire_codec.values import extents_from_message, extents_to_messages

TICKETS: list[DiskTicket] = [
    DirectTicket(chain=(ChainFile(datastore_id=DatastoreId("ds:///a/"), path="web/web.vmdk"),)),
    HotAddTicket(bus_number=1, unit_number=8, disk_uuid="6000C290"),
    NfcTicket(url="https://esx/nfc/1", certificate_sha256="ab", create=True),
    *(FileTicket(path="/r/d.vmdk", format=each) for each in FileFormat),
]
RESTORED = (
    DiskToRestore(device_key=2000, backing_uuid="u", adapter_type="pvscsi", ticket=TICKETS[0]),
)
WORKS: list[Work] = [
    BackUpDisks(
        vm=VmIdentity(vcenter_id="v", instance_uuid="i", bios_uuid="b", name="web", moref="vm-1"),
        lineage_id=LineageId("v/i"),
        level_asked="incremental",
        level="full",
        level_reason="first",
        previous_point_id=PointId("p"),
        consistency=Consistency(asked="filesystem", reached="crash", evidence="no tools"),
        snapshot_time="t",
        group_id="g",
        transport=TransportKind.DIRECT,
        configuration="{}",
        blobs=(Blob(kind="nvram", data=b"\x00", note="after the snapshot"),),
        disks=(
            DiskToBackUp(
                device_key=2000,
                backing_uuid="u",
                label="Hard disk 1",
                capacity_bytes=1 << 46,
                sector_bytes=512,
                storage_policy="",
                chain=("[nfs1] web/web.vmdk",),
                change_id="52 aa/1",
                adapter="pvscsi 0:0",
                areas=AreaSource.CHANGED,
                areas_reason="",
                ticket=TICKETS[0],
                lane=2,
            ),
        ),
        keys=Secret(b"writer"),
        damaged_packs=(b"d" * 32, b"p" * 32),
    ),
    RestoreDisks(
        point_id=PointId("p"),
        lineage_id=LineageId("l"),
        disks=RESTORED,
        keys=Secret(b"reader"),
        blob_kinds=("nvram",),
    ),
    VerifyDisks(
        point_id=PointId("p"), lineage_id=LineageId("l"), disks=RESTORED, keys=Secret(b"k")
    ),
    CheckRepository(read_data=True, point_ids=(PointId("p"),), keys=(Secret(b"k"),)),
    CheckRepository(
        read_data=False, point_ids=(), keys=(), expected_point_ids=(PointId("a"), PointId("b"))
    ),
    CheckRepository(read_data=True, point_ids=(), keys=(), subset="3/30"),
    RepairRepository(keys=(Secret(b"k"),)),
    RepairRepository(
        keys=(),
        expected_point_ids=(PointId("a"),),
        source_folder="/mnt/copy",
        dry_run=True,
        other_keys=(Secret(b"o"),),
        content_keys=Secret(b"c"),
    ),
    ListPoints(keys=(Secret(b"k"),), job_id=JobId(new_ulid())),
    ListPoints(keys=()),
    CheckNewFile(ticket=FileTicket(path="/r/d.vmdk", format=FileFormat.FLAT)),
]


def plain(value: object) -> object:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    return value


@pytest.mark.parametrize("work", WORKS, ids=lambda work: type(work).__name__)
def test_a_job_comes_out_of_its_message_as_it_went_in(work: Work) -> None:
    spec = JobSpec(run_id=RunId(new_ulid()), repository_id=RepositoryId("r"), work=work)
    message = job_pb2.JobSpec.FromString(job_spec_to_message(spec).SerializeToString())
    assert plain(job_spec_from_message(message)) == plain(spec)


def test_equal_jobs_have_equal_digests_and_others_do_not() -> None:
    run_id = RunId(new_ulid())
    digests = {
        spec_digest(
            job_spec_to_message(JobSpec(run_id=run_id, repository_id=RepositoryId("r"), work=work))
        )
        for work in WORKS + WORKS
    }
    assert len(digests) == len(WORKS)


def test_secrets_of_a_job_do_not_show() -> None:
    spec = JobSpec(run_id=RunId(new_ulid()), repository_id=RepositoryId("r"), work=WORKS[0])
    assert "writer" not in repr(spec)
    assert "x00" not in repr(spec)


@pytest.mark.parametrize("ticket", TICKETS, ids=lambda ticket: type(ticket).__name__)
def test_a_ticket_comes_out_as_it_went_in(ticket: DiskTicket) -> None:
    assert ticket_from_message(ticket_to_message(ticket)) == ticket


def test_what_cannot_be_right_is_refused() -> None:
    with pytest.raises(UsageError, match="no known kind"):
        ticket_from_message(job_pb2.DiskTicket())
    with pytest.raises(UsageError, match="no known kind"):
        job_spec_from_message(job_pb2.JobSpec(run_id=new_ulid()))
    with pytest.raises(UsageError, match="not a ULID"):
        job_spec_from_message(job_pb2.JobSpec(run_id="../x"))
    with pytest.raises(UsageError, match="broken list"):
        extents_from_message(session_pb2.Extents(offsets=[1], lengths=[0]))
    with pytest.raises(UsageError, match="unknown outcome"):
        job_result_from_message(job_pb2.JobResult(outcome="splendid"))


def test_a_result_comes_out_as_it_went_in() -> None:
    result = JobResult(
        outcome=Outcome.FAILED,
        error=ErrorReport(
            code="integrity",
            message="differs",
            advice="look",
            exit_status=13,
            facts=(("offset", "1"),),
        ),
        warnings=(Warned(code="w", message="m"),),
        disks=(
            DiskResult(
                device_key=2000,
                transport="nfc",
                read_bytes=1 << 50,
                differing=(Extent(offset=512, length=512),),
                duration_seconds=1.5,
                level_reason="moved",
            ),
        ),
        point_id=PointId("p"),
        record=b"{}",
        blobs=(Blob(kind="nvram", data=b"1"),),
        points=(
            PointFound(
                point_id=PointId("p"),
                job_id=JobId("j"),
                lineage_id=LineageId("l"),
                record=b"{}",
            ),
        ),
        damages=(
            DamageFound(
                object_name="o",
                problem="gone",
                point_id="p",
                device_key=2000,
                ranges_left_out=4,
                bytes_left_out=2048,
            ),
        ),
        objects_left_out=5,
        losses_left_out=6,
        objects_checked=3,
        started_at="a",
        finished_at="b",
    )
    message = job_pb2.JobResult.FromString(job_result_to_message(result).SerializeToString())
    assert job_result_from_message(message) == result
    assert result.error is not None
    error = result.error.to_error()
    assert (type(error).__name__, error.exit_status) == ("IntegrityError", 13)


@given(
    st.lists(
        st.tuples(st.sampled_from("pq"), st.integers(0, 3 * PIECE_RANGES_MAX), st.integers(0, 2)),
        max_size=4,
    )
)
@settings(max_examples=8, deadline=None)
def test_ranges_of_a_disk_travel_in_pieces_and_come_back_as_one(
    disks: list[tuple[str, int, int]],
) -> None:
    damages = tuple(
        DamageFound(
            object_name=f"points/{number}",
            problem="lost",
            point_id=point,
            device_key=2000,
            lost=tuple(Extent(offset=n << 17, length=512) for n in range(count)),
            ranges_left_out=left_out,
        )
        for number, (point, count, left_out) in enumerate(disks)
    )
    pieces = [piece for each in damages for piece in damage_pieces(damage_to_message(each))]
    assert all(len(piece.lost) <= PIECE_RANGES_MAX for piece in pieces)
    whole = job_result_from_message(job_pb2.JobResult(outcome="failed", damages=pieces))
    assert whole.damages == damages


@given(
    st.lists(
        st.builds(
            Extent,
            offset=st.integers(min_value=0, max_value=1 << 46),
            length=st.integers(min_value=1, max_value=1 << 46),
        ),
        max_size=200,
    )
)
def test_extents_travel_as_they_are(extents: list[Extent]) -> None:
    found = [e for m in extents_to_messages(extents) for e in extents_from_message(m)]
    assert found == extents


def test_no_message_of_extents_passes_one_mebibyte() -> None:
    many = (Extent(offset=1 << 46, length=1 << 46) for _ in range(50_000))
    sizes = [len(message.SerializeToString()) for message in extents_to_messages(many)]
    assert len(sizes) == 3
    assert max(sizes) < 1 << 20


def test_a_record_of_a_point_keeps_what_it_knows_and_ignores_what_it_does_not() -> None:
    texts = {
        field.name: field.name
        for field in dataclasses.fields(PointRecord)
        if field.name not in {"disks", "blob_kinds", "blob_notes"}
    }
    disk = DiskRecord(device_key=2000, uuid="u", label="l", capacity_bytes=512, chain=("a", "b"))
    record = PointRecord(**texts, disks=(disk,), blob_kinds=("vmx",), blob_notes={"vmx": "n"})
    assert PointRecord.decode(record.encode()) == record
    newer = record.encode().replace(b'"adapter"', b'"colour": 1, "adapter"')
    assert PointRecord.decode(newer) == record
