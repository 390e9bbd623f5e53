"""Our readers against qemu's writers, and our writers against qemu's reader."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from holdfast_common.extents import Extent, merged
from holdfast_common.formats.vmdk_chain import open_chain_at
from holdfast_common.formats.vmdk_descriptor import CreateType, ExtentKind, ExtentLine
from holdfast_common.formats.vmdk_descriptor_text import descriptor_text
from holdfast_common.formats.vmdk_flat import FlatWriter
from holdfast_common.formats.vmdk_sparse_writer import ParentLink, SparseWriter
from holdfast_common.formats.vmdk_stream_optimized import StreamOptimizedReader
from holdfast_common.formats.vmdk_stream_writer import StreamOptimizedWriter
from support.vmdk_images import (
    MIB,
    chain_to_raw,
    make_raw,
    needs_qemu,
    qemu_img,
    qemu_write,
    raw_to_sink,
)

pytestmark = needs_qemu

CAPACITIES = [
    512,
    64 * 1024 - 512,
    64 * 1024,
    64 * 1024 + 512,
    32 * MIB,
    32 * MIB + 512,
    3 * MIB + 7 * 512,
    5 * 1024 * MIB + 3 * 512,
]
SUBFORMATS = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
]


def assert_same(raw: Path, image: Path, *, kind: str = "raw") -> None:
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", kind, raw, image)


@pytest.mark.parametrize("capacity_bytes", CAPACITIES)
@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_what_qemu_writes_is_read_as_it_was(
    tmp_path: Path, subformat: str, capacity_bytes: int
) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vmdk"
    make_raw(raw, capacity_bytes, seed=capacity_bytes)
    qemu_img("convert", "-O", "vmdk", "-o", f"subformat={subformat}", "-f", "raw", raw, image)
    chain_to_raw([image], tmp_path / "ours.raw", step=MIB - 512)
    assert_same(raw, tmp_path / "ours.raw")


@pytest.mark.parametrize("capacity_bytes", CAPACITIES)
@pytest.mark.parametrize("kind", ["sparse", "stream", "flat", "vmfs"])
def test_what_we_write_is_read_by_qemu_and_by_us(
    tmp_path: Path, kind: str, capacity_bytes: int
) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vmdk"
    written = merged(make_raw(raw, capacity_bytes, seed=capacity_bytes + 1))
    if kind == "sparse":
        sink = SparseWriter(image.open("xb", buffering=0), capacity_bytes, file_name=image.name)
        raw_to_sink(raw, sink, written, step=100 * 512)
    elif kind == "stream":
        with image.open("xb") as stream:
            raw_to_sink(raw, StreamOptimizedWriter(stream, capacity_bytes), written, step=MIB)
    else:
        flat = tmp_path / "disk-flat.vmdk"
        raw_to_sink(
            raw, FlatWriter(flat.open("xb", buffering=0), capacity_bytes), written, step=77 * 512
        )
        create_type = CreateType.VMFS if kind == "vmfs" else CreateType.MONOLITHIC_FLAT
        extent_kind = ExtentKind.VMFS if kind == "vmfs" else ExtentKind.FLAT
        extent = ExtentLine(kind=extent_kind, length=capacity_bytes, file_name=flat.name)
        image.write_text(descriptor_text(create_type=create_type, extents=[extent]))
    assert_same(raw, image, kind="vmdk")
    chain_to_raw([image], tmp_path / "ours.raw", step=65536)
    assert_same(raw, tmp_path / "ours.raw")


@pytest.mark.parametrize("capacity_bytes", CAPACITIES)
def test_a_stream_is_read_in_one_pass_as_it_was_written(
    tmp_path: Path, capacity_bytes: int
) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vmdk"
    written = merged(make_raw(raw, capacity_bytes, seed=capacity_bytes + 2))
    with image.open("xb") as stream:
        raw_to_sink(raw, StreamOptimizedWriter(stream, capacity_bytes), written, step=512 * 3)
    with image.open("rb") as stream, (tmp_path / "ours.raw").open("wb") as copy:
        reader = StreamOptimizedReader(stream, capacity_bytes_max=capacity_bytes)
        copy.truncate(reader.capacity_bytes)
        for offset, data in reader.blocks():
            copy.seek(offset)
            copy.write(data)
        assert reader.stream_bytes == image.stat().st_size
    assert_same(raw, tmp_path / "ours.raw")


@pytest.mark.parametrize("capacity_bytes", [512, 65536 - 512, 40 * MIB + 5 * 512])
def test_a_child_that_qemu_wrote_is_read_through_to_its_parent(
    tmp_path: Path, capacity_bytes: int
) -> None:
    raw = tmp_path / "disk.raw"
    make_raw(raw, capacity_bytes, seed=7)
    names = [tmp_path / name for name in ("base.vmdk", "one.vmdk", "two.vmdk")]
    qemu_img("convert", "-f", "raw", "-O", "vmdk", raw, names[0])
    for number, (parent, child) in enumerate(pairwise(names), start=1):
        qemu_img("create", "-q", "-f", "vmdk", "-b", parent, "-F", "vmdk", child)
        last = capacity_bytes - 512
        writes = [(0, 512, number), (last // 2 // 512 * 512, 512, 16 + number), (last, 512, 32)]
        qemu_write(child, writes)
        qemu_write(raw, writes, kind="raw")
    chain_to_raw(names, tmp_path / "ours.raw")
    assert_same(raw, tmp_path / "ours.raw")
    with open_chain_at(names) as chain:
        assert chain.descriptor.parent_hint.endswith("one.vmdk")


def test_zeroed_grains_of_a_child_hide_the_parent(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vmdk", tmp_path / "child.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", base, "1M")
    qemu_write(base, [(0, MIB, 0xAA)])
    qemu_img("create", "-q", "-f", "vmdk", "-o", "zeroed_grain=on", "-b", base, "-F", "vmdk", child)
    subprocess.run(
        ["qemu-io", "-f", "vmdk", "-c", "write -z 65536 131072", str(child)],
        check=True,
        capture_output=True,
    )
    qemu_img("convert", "-f", "vmdk", "-O", "raw", child, tmp_path / "disk.raw")
    chain_to_raw([base, child], tmp_path / "ours.raw")
    assert_same(tmp_path / "disk.raw", tmp_path / "ours.raw")
    with open_chain_at([base, child]) as chain:
        assert chain.allocated() == [
            Extent(offset=0, length=65536),
            Extent(offset=65536 * 3, length=MIB - 65536 * 3),
        ]


@pytest.mark.parametrize("capacity_bytes", [65536 * 3, 40 * MIB + 512])
def test_a_child_that_we_wrote_is_read_by_qemu(tmp_path: Path, capacity_bytes: int) -> None:
    raw, base, child = (tmp_path / name for name in ("disk.raw", "base.vmdk", "child.vmdk"))
    written = merged(make_raw(raw, capacity_bytes, seed=3))
    sink = SparseWriter(
        base.open("xb", buffering=0), capacity_bytes, file_name=base.name, content_id=0x1234
    )
    raw_to_sink(raw, sink, written, step=MIB)
    above = SparseWriter(
        child.open("xb", buffering=0),
        capacity_bytes,
        file_name=child.name,
        parent=ParentLink(content_id=0x1234, hint=base.name),
    )
    last = (capacity_bytes - 1) // 65536 * 65536
    above.write(0, memoryview(bytes(65536)))
    above.write(last, memoryview(b"\xee" * (capacity_bytes - last)))
    above.finish()
    above.close()
    qemu_write(raw, [(0, 65536, 0), (last, capacity_bytes - last, 0xEE)], kind="raw")
    assert_same(raw, child, kind="vmdk")
    chain_to_raw([base, child], tmp_path / "ours.raw")
    assert_same(raw, tmp_path / "ours.raw")
