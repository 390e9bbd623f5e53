"""Two strangers meet: the product's readers over the lab's files, and the other way round.

Both were written on their own and agree with qemu-img; here they must agree with each other.
"""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from holdfast_common.formats.partition_table import TableKind, read_partition_table
from holdfast_common.formats.vmdk_chain import open_chain_at
from holdfast_common.formats.vmdk_stream_optimized import StreamOptimizedReader
from holdfast_common.formats.vmdk_stream_writer import StreamOptimizedWriter
from holdfast_lab.storage.disk import DatastoreKind, LabDisk
from holdfast_lab.storage.partitions import PartitionLayout, partitioned
from holdfast_lab.storage.readers import RawReader, pieces
from holdfast_lab.storage.stream_decoder import decode_upload
from holdfast_lab.storage.stream_encoder import stream_optimized
from support.lab_disks import MIB, make_disk


def written_disk(folder: Path, kind: DatastoreKind) -> LabDisk:
    disk = make_disk(folder, capacity=40 * MIB + 512, kind=kind)
    disk.enable_tracking()
    chooser = random.Random(3)
    for number in range(4):
        disk.guest_write(number * 7 * MIB + 512, chooser.randbytes(300 * 512))
        disk.guest_zero(number * 7 * MIB + 100 * 512, 64 * 512)
        if number < 3:
            disk.freeze()
    disk.guest_write(disk.capacity_bytes - 512, chooser.randbytes(512))
    return disk


@pytest.mark.parametrize("kind", list(DatastoreKind))
def test_the_product_reads_every_link_of_the_labs_chains(
    tmp_path: Path, kind: DatastoreKind
) -> None:
    disk = written_disk(tmp_path, kind)
    for link in disk.links:
        truth = tmp_path / f"{link.name}.raw"
        disk.truth(truth, disk.truth_sequence(link))
        with (
            open_chain_at(disk.chain_of(link), capacity_bytes=disk.capacity_bytes) as chain,
            RawReader(truth) as wanted,
        ):
            known = [(extent.offset, extent.length) for extent in chain.allocated()]
            for area in wanted.allocated():
                for offset, length in pieces(area):
                    one, other = bytearray(length), bytearray(length)
                    chain.read_into(offset, memoryview(one))
                    wanted.read_into(offset, memoryview(other))
                    assert one == other
                    if any(other):
                        assert any(at < offset + length and offset < at + n for at, n in known)


def test_the_product_reads_the_labs_exports(tmp_path: Path) -> None:
    disk = written_disk(tmp_path, DatastoreKind.VMFS)
    with disk.reader_at() as reader:
        stream = io.BytesIO(b"".join(stream_optimized(reader)))
    product = StreamOptimizedReader(stream)
    assert product.capacity_bytes == disk.capacity_bytes
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.truncate(disk.capacity_bytes)
        for offset, data in product.blocks():
            file.seek(offset)
            file.write(data)
    assert disk.first_difference(raw) is None


def test_the_lab_imports_the_products_streams(tmp_path: Path) -> None:
    disk = written_disk(tmp_path, DatastoreKind.VMFS)
    upload = tmp_path / "upload.vmdk"
    with disk.reader_at() as reader, upload.open("wb") as file:
        writer = StreamOptimizedWriter(file, disk.capacity_bytes)
        for area in reader.allocated():
            for offset, length in pieces(area):
                data = bytearray(length)
                reader.read_into(offset, memoryview(data))
                writer.write(offset, memoryview(data))
        writer.finish()
    raw = tmp_path / "raw"
    decode_upload(upload, raw, capacity_bytes=disk.capacity_bytes)
    assert disk.first_difference(raw) is None


@pytest.mark.parametrize("layout", [PartitionLayout.MBR, PartitionLayout.GPT])
def test_the_product_finds_the_guests_partition(tmp_path: Path, layout: PartitionLayout) -> None:
    disk = make_disk(tmp_path, capacity=16 * MIB + 512)
    plan = partitioned(layout, disk.capacity_bytes)
    for offset, content in plan.writes:
        disk.guest_write(offset, content)
    with disk.reader_at() as reader:
        table = read_partition_table(reader)
    assert table.kind is (TableKind.MBR if layout is PartitionLayout.MBR else TableKind.GPT)
    (partition,) = table.partitions
    assert (partition.offset, partition.length) == (plan.partition.offset, plan.partition.length)
    assert not table.notes
