"""streamOptimized both ways, against qemu-img, and what an import refuses."""

from __future__ import annotations

import io
import random
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast_lab.storage.disk import DatastoreKind, LabDisk
from holdfast_lab.storage.errors import StreamCut, StreamRefused
from holdfast_lab.storage.readers import RawReader
from holdfast_lab.storage.stream_decoder import decode_stream, decode_upload
from holdfast_lab.storage.stream_encoder import stream_optimized
from support.lab_disks import MIB, QEMU_IMG, make_disk, needs_qemu


def encoded(disk: LabDisk) -> bytes:
    with disk.reader_at() as reader:
        return b"".join(stream_optimized(reader))


def small_disk(folder: Path, capacity: int = 70 * MIB + 512) -> LabDisk:
    disk = make_disk(folder, capacity=capacity, kind=DatastoreKind.NFS)
    chooser = random.Random(7)
    disk.guest_write(0, chooser.randbytes(70_144))
    disk.guest_write(33 * MIB, b"text " * 1024 * 4)
    disk.freeze()
    disk.guest_write(capacity - 512, chooser.randbytes(512))
    return disk


@needs_qemu
@pytest.mark.parametrize("capacity", [MIB, 70 * MIB + 512, 32 * MIB])
def test_qemu_reads_what_is_exported(tmp_path: Path, capacity: int) -> None:
    assert QEMU_IMG is not None
    disk = make_disk(tmp_path, capacity=capacity)
    disk.guest_write(0, b"begin" + bytes(507))
    disk.guest_write(capacity - 512, bytes(507) + b"the e")
    stream = tmp_path / "export.vmdk"
    stream.write_bytes(encoded(disk))
    truth = tmp_path / "truth.raw"
    disk.truth(truth)
    command = [QEMU_IMG, "compare", "-f", "vmdk", "-F", "raw", str(stream), str(truth)]
    subprocess.run(command, check=True, timeout=60)
    facts = decode_upload(stream, tmp_path / "again.raw", capacity_bytes=capacity)
    assert facts.judge == "qemu-img"
    assert disk.first_difference(tmp_path / "again.raw") is None


@needs_qemu
@pytest.mark.parametrize("capacity", [MIB, 70 * MIB + 512])
def test_what_qemu_writes_is_imported(tmp_path: Path, capacity: int) -> None:
    assert QEMU_IMG is not None
    disk = small_disk(tmp_path, capacity) if capacity > 34 * MIB else make_disk(tmp_path)
    raw = tmp_path / "raw"
    disk.truth(raw)
    stream = tmp_path / "upload.vmdk"
    options = ["-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([QEMU_IMG, "convert", *options, str(raw), str(stream)], check=True, timeout=60)
    decode_upload(stream, tmp_path / "again.raw")
    assert disk.first_difference(tmp_path / "again.raw") is None


def test_an_empty_disk_keeps_its_size(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, capacity=2**40)
    stream = encoded(disk)
    assert len(stream) < 300_000
    facts = decode_stream(io.BytesIO(stream).read, tmp_path / "raw")
    assert facts.capacity_bytes == 2**40
    assert facts.grains == 0


def test_a_stream_in_small_pieces_is_decoded_alike(tmp_path: Path) -> None:
    disk = small_disk(tmp_path)
    source = io.BytesIO(encoded(disk))
    decode_stream(lambda count: source.read(min(count, 100)), tmp_path / "raw")
    assert disk.first_difference(tmp_path / "raw") is None


def test_version_1_is_refused(tmp_path: Path) -> None:
    stream = bytearray(encoded(small_disk(tmp_path)))
    stream[4:8] = struct.pack("<I", 1)
    with pytest.raises(StreamRefused, match="version 1"):
        decode_stream(io.BytesIO(stream).read, tmp_path / "raw")


def test_another_capacity_than_the_disks_is_refused(tmp_path: Path) -> None:
    stream = encoded(small_disk(tmp_path))
    with pytest.raises(StreamRefused, match="sectors"):
        decode_stream(io.BytesIO(stream).read, tmp_path / "raw", capacity_bytes=MIB)


def test_a_descriptor_that_names_a_parent_is_refused(tmp_path: Path) -> None:
    stream = bytearray(encoded(small_disk(tmp_path)))
    stream[4096:4137] = b'\nparentFileNameHint="/etc/passwd.vmdk"\n\n\n\n'
    with pytest.raises(StreamRefused, match="descriptor"):
        decode_stream(io.BytesIO(stream).read, tmp_path / "raw")


def test_data_after_the_end_is_refused(tmp_path: Path) -> None:
    stream = encoded(small_disk(tmp_path)) + b"more"
    with pytest.raises(StreamRefused, match="after the end"):
        decode_stream(io.BytesIO(stream).read, tmp_path / "raw")


def test_a_cut_stream_is_noticed_wherever_it_is_cut(tmp_path: Path) -> None:
    stream = encoded(small_disk(tmp_path))
    for end in range(0, len(stream) - 1, 4093):
        with pytest.raises((StreamCut, StreamRefused)):
            decode_stream(io.BytesIO(stream[:end]).read, tmp_path / f"raw-{end}")
        (tmp_path / f"raw-{end}").unlink()


def test_a_capacity_that_no_file_here_can_have_is_refused(tmp_path: Path) -> None:
    stream = bytearray(encoded(small_disk(tmp_path)))
    stream[16] ^= 8  # 16 TiB more
    with pytest.raises(StreamRefused):
        decode_stream(io.BytesIO(stream).read, tmp_path / "raw")


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_damaged_stream_is_refused_or_gives_the_same_content(
    tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "disk"
    stream_file = tmp_path / "stream"
    if not stream_file.exists():
        stream_file.write_bytes(encoded(small_disk(folder)))
        decode_stream(io.BytesIO(stream_file.read_bytes()).read, tmp_path / "good")
    stream = bytearray(stream_file.read_bytes())
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path / "damaged"
    damaged.unlink(missing_ok=True)
    try:
        decode_stream(io.BytesIO(stream).read, damaged)
    except StreamRefused:
        return
    with RawReader(damaged) as got, RawReader(tmp_path / "good") as wanted:
        for area in wanted.allocated():
            one, other = bytearray(area.length), bytearray(area.length)
            got.read_into(area.offset, memoryview(one))
            wanted.read_into(area.offset, memoryview(other))
            assert one == other
