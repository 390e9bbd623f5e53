"""Descriptors: what ESXi and others write is read, and what we write reads back the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.errors import FormatError
from holdfast_common.formats.vmdk_descriptor import (
    CreateType,
    Descriptor,
    ExtentKind,
    ExtentLine,
    parse_descriptor,
)
from holdfast_common.formats.vmdk_descriptor_text import (
    descriptor_text,
    extents_of_one_file,
    geometry_for,
    uuid_database_text,
)

GIB = 1 << 30

THIN_BASE = """\
# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=5b8a1e3c
parentCID=ffffffff
isNativeSnapshot="no"
createType="vmfs"

# Extent description
RW 33554432 VMFS "web 01-flat.vmdk"

# Change Tracking File
changeTrackPath="web 01-ctk.vmdk"

# The Disk Data Base 
#DDB

ddb.adapterType = "lsilogic"
ddb.deletable = "true"
ddb.encoding = "UTF-8"
ddb.geometry.cylinders = "2088"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.longContentID = "e3ad1ff3b1b0a4ab1d3ca6f75b8a1e3c"
ddb.thinProvisioned = "1"
ddb.toolsInstallType = "4"
ddb.toolsVersion = "12325"
ddb.uuid = "60 00 C2 92 0e 5f 1d 4b-b6 0c 4a 5d 5b 3a 1f 77"
ddb.virtualHWVersion = "19"
"""  # noqa: W291  # ESXi really ends that line with a blank

SNAPSHOT = """\
# Disk DescriptorFile
version=4
encoding="UTF-8"
CID=a0b1c2d3
parentCID=5b8a1e3c
isNativeSnapshot="no"
createType="seSparse"
parentFileNameHint="/vmfs/volumes/5f0c/web 01/web 01.vmdk"
# Extent description
RW 33554432 SESPARSE "web 01-000001-sesparse.vmdk"

# Change Tracking File
changeTrackPath="web 01-000001-ctk.vmdk"

# The Disk Data Base
#DDB

ddb.grain = "8"
ddb.longContentID = "42b1dd41f1dd3b1f0bb4cdd5a0b1c2d3"
"""

EXPORTED = """# Disk DescriptorFile\r
version=1\r
CID=7ad6b9e4\r
parentCID=ffffffff\r
createType="streamOptimized"\r
\r
# Extent description\r
RDONLY 204800 SPARSE "call-me-stream.vmdk"\r
\r
#DDB\r
ddb.adapterType = "ide"\r
"""


def test_a_thin_disk_of_esxi_is_read() -> None:
    assert parse_descriptor(THIN_BASE.encode()) == Descriptor(
        create_type=CreateType.VMFS,
        content_id=0x5B8A1E3C,
        parent_content_id=None,
        extents=(ExtentLine(kind=ExtentKind.VMFS, length=16 * GIB, file_name="web 01-flat.vmdk"),),
        change_tracking_name="web 01-ctk.vmdk",
        database={
            "adapterType": "lsilogic",
            "deletable": "true",
            "encoding": "UTF-8",
            "geometry.cylinders": "2088",
            "geometry.heads": "255",
            "geometry.sectors": "63",
            "longContentID": "e3ad1ff3b1b0a4ab1d3ca6f75b8a1e3c",
            "thinProvisioned": "1",
            "toolsInstallType": "4",
            "toolsVersion": "12325",
            "uuid": "60 00 C2 92 0e 5f 1d 4b-b6 0c 4a 5d 5b 3a 1f 77",
            "virtualHWVersion": "19",
        },
    )


def test_a_disks_uuid_is_given_as_vsphere_gives_it() -> None:
    descriptor = parse_descriptor(THIN_BASE.encode())
    assert descriptor.disk_uuid == "6000c292-0e5f-1d4b-b60c-4a5d5b3a1f77"
    assert uuid_database_text(descriptor.disk_uuid) == descriptor.database["uuid"].lower()
    assert parse_descriptor(SNAPSHOT.encode()).disk_uuid == ""
    with pytest.raises(FormatError, match="not a disk's uuid"):
        uuid_database_text('x"\nevil')


def test_a_snapshot_of_esxi_is_read() -> None:
    descriptor = parse_descriptor(SNAPSHOT.encode())
    assert descriptor.create_type is CreateType.SE_SPARSE
    assert descriptor.parent_content_id == 0x5B8A1E3C
    assert descriptor.parent_hint == "/vmfs/volumes/5f0c/web 01/web 01.vmdk"
    assert descriptor.capacity_bytes == 16 * GIB


def test_an_exported_disk_with_other_line_ends_is_read() -> None:
    descriptor = parse_descriptor(EXPORTED.encode() + bytes(100))
    assert descriptor.create_type is CreateType.STREAM_OPTIMIZED
    assert descriptor.adapter_type == "ide"
    assert descriptor.extents[0].file_name == "call-me-stream.vmdk"


def test_the_text_is_golden() -> None:
    text = descriptor_text(
        create_type=CreateType.VMFS,
        extents=extents_of_one_file(
            CreateType.VMFS, file_name="a-flat.vmdk", capacity_bytes=16 * GIB
        ),
        adapter_type="pvscsi",
        content_id=0x1234ABCD,
        hardware_version=19,
        disk_uuid="6000c292-0e5f-1d4b-b60c-4a5d5b3a1f77",
        thin=True,
    )
    assert (
        text
        == """\
# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=1234abcd
parentCID=ffffffff
createType="vmfs"

# Extent description
RW 33554432 VMFS "a-flat.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "pvscsi"
ddb.encoding = "UTF-8"
ddb.geometry.cylinders = "2088"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.thinProvisioned = "1"
ddb.uuid = "60 00 c2 92 0e 5f 1d 4b-b6 0c 4a 5d 5b 3a 1f 77"
ddb.virtualHWVersion = "19"
"""
    )


@pytest.mark.parametrize(
    ("adapter", "capacity_bytes", "shape"),
    [
        ("lsilogic", 100 << 20, (100, 64, 32)),
        ("lsilogic", GIB, (512, 128, 32)),
        ("lsilogic", 40 * GIB, (5221, 255, 63)),
        ("pvscsi", 62 << 40, (65535, 255, 63)),
        ("ide", 100 << 20, (203, 16, 63)),
        ("ide", 100 * GIB, (16383, 16, 63)),
        ("lsilogic", 512, (1, 64, 32)),
    ],
)
def test_the_geometry_is_vmwares(
    adapter: str, capacity_bytes: int, shape: tuple[int, int, int]
) -> None:
    geometry = geometry_for(adapter, capacity_bytes)
    assert (geometry.cylinders, geometry.heads, geometry.sectors) == shape


@given(
    create_type=st.sampled_from(list(CreateType)),
    name=st.text(max_size=80),
    capacity_sectors=st.integers(-1, 1 << 38),
    content_id=st.integers(0, 0xFFFFFFFF),
    parent=st.none() | st.integers(0, 0xFFFFFFFE),
    hint=st.text(max_size=40),
    adapter=st.text(max_size=20),
)
def test_whatever_is_written_reads_back_or_is_refused(
    create_type: CreateType,
    name: str,
    capacity_sectors: int,
    content_id: int,
    parent: int | None,
    hint: str,
    adapter: str,
) -> None:
    try:
        text = descriptor_text(
            create_type=create_type,
            extents=extents_of_one_file(
                create_type, file_name=name, capacity_bytes=capacity_sectors * 512
            ),
            content_id=content_id,
            parent_content_id=parent,
            parent_hint=hint,
            adapter_type=adapter,
        )
    except FormatError:
        return
    found = parse_descriptor(text.encode())
    assert found.content_id == content_id
    assert found.parent_content_id == parent
    assert found.capacity_bytes == capacity_sectors * 512
    assert found.extents[0].file_name == name
    assert found.parent_hint == hint
    assert found.adapter_type == adapter


@given(text=st.text(max_size=300))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    for data in (
        text.encode("utf-8", "surrogatepass"),
        ("# Disk DescriptorFile\n" + text).encode("utf-8", "surrogatepass"),
    ):
        with pytest.raises(FormatError):
            parse_descriptor(data)


def test_nothing_can_be_smuggled_into_a_descriptor() -> None:
    extents = extents_of_one_file(CreateType.VMFS, file_name="a.vmdk", capacity_bytes=512)
    evil = 'x"\nRW 1 VMFS "b.vmdk'
    with pytest.raises(FormatError):
        descriptor_text(create_type=CreateType.VMFS, extents=extents, adapter_type=evil)
    with pytest.raises(FormatError):
        descriptor_text(create_type=CreateType.VMFS, extents=extents, parent_hint=evil)
    with pytest.raises(FormatError):
        extents = extents_of_one_file(CreateType.VMFS, file_name=evil, capacity_bytes=512)
        descriptor_text(create_type=CreateType.VMFS, extents=extents)


def test_the_remains_that_qemu_leaves_behind_a_nul_are_no_text() -> None:
    """It writes an id without leading zeros over a longer text, about once in 256 disks."""
    parse_descriptor(THIN_BASE.encode() + b'\x00647"\n' + bytes(100))
    with pytest.raises(FormatError, match="NUL inside the text"):
        parse_descriptor(THIN_BASE.encode() + b"\0RW 1 FLAT")
