"""Sparse writing and chains: holes, odd places, huge disks in little memory."""

from __future__ import annotations

import mmap
import os
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast_common.errors import FormatError, ShortRead, SourceFailed, TargetFailed
from holdfast_common.extents import Extent
from holdfast_common.formats.vmdk_chain import ImageName, open_chain, open_chain_at, read_descriptor
from holdfast_common.formats.vmdk_descriptor import CreateType, ExtentKind, ExtentLine
from holdfast_common.formats.vmdk_descriptor_text import descriptor_text
from holdfast_common.formats.vmdk_flat import FlatWriter
from holdfast_common.formats.vmdk_sparse_writer import ParentLink, SparseWriter
from support.vmdk_redo_logs import cowd_bytes, write_redo_log

MIB = 1 << 20
TIB = 1 << 40
GRAIN = 65536


def write_sparse(path: Path, capacity_bytes: int, writes: dict[int, bytes]) -> None:
    sink = SparseWriter(path.open("xb", buffering=0), capacity_bytes, file_name=path.name)
    for offset, data in sorted(writes.items()):
        sink.write(offset, memoryview(data))
    sink.finish()
    sink.close()


def flat_disk(folder: Path, capacity_bytes: int, writes: dict[int, bytes]) -> Path:
    flat = folder / "base-flat.vmdk"
    sink = FlatWriter(flat.open("xb", buffering=0), capacity_bytes)
    for offset, data in sorted(writes.items()):
        sink.write(offset, memoryview(data))
    sink.finish()
    sink.close()
    extent = ExtentLine(kind=ExtentKind.VMFS, length=capacity_bytes, file_name=flat.name)
    path = folder / "base.vmdk"
    path.write_text(descriptor_text(create_type=CreateType.VMFS, extents=[extent], content_id=7))
    return path


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_sectors_written_are_read_at_any_place(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("disk")
    sectors = data.draw(st.integers(1, 1000))
    cuts = sorted(data.draw(st.lists(st.integers(0, sectors), max_size=8)))
    source = random.Random(data.draw(st.integers(0, 99)))
    expected = bytearray(sectors * 512)
    writes = {}
    for start, end in zip(cuts[::2], cuts[1::2], strict=False):
        if end > start:
            writes[start * 512] = source.randbytes((end - start) * 512)
            expected[start * 512 : end * 512] = writes[start * 512]
    if data.draw(st.booleans()):
        path = folder / "disk.vmdk"
        write_sparse(path, len(expected), writes)
    else:
        path = flat_disk(folder, len(expected), writes)
    with open_chain_at([path]) as chain:
        first = data.draw(st.integers(0, len(expected)))
        length = data.draw(st.integers(0, len(expected) - first))
        buffer = bytearray(b"\xff" * length)
        chain.read_into(first, memoryview(buffer))
        assert buffer == expected[first : first + length]
        outside = bytearray(expected)
        for extent in chain.allocated():
            outside[extent.offset : extent.end] = bytes(extent.length)
        assert not any(outside)


def test_a_disk_that_was_not_finished_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    sink = SparseWriter(path.open("xb", buffering=0), MIB, file_name=path.name)
    sink.write(0, memoryview(b"a" * MIB))
    sink.close()
    with pytest.raises(FormatError, match="never completed"):
        open_chain_at([path])


def test_zeros_take_no_room(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    write_sparse(path, 10 * MIB, {0: bytes(5 * MIB), 5 * MIB: b"a" * GRAIN})
    with open_chain_at([path]) as chain:
        assert chain.allocated() == [Extent(offset=5 * MIB, length=GRAIN)]
    assert path.stat().st_size <= 3 * GRAIN


def test_above_a_parent_only_whole_grains_are_written(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    sink = SparseWriter(
        path.open("xb", buffering=0),
        MIB + 512,
        file_name=path.name,
        parent=ParentLink(content_id=1, hint="base.vmdk"),
    )
    with pytest.raises(TargetFailed, match="part of a grain"):
        sink.write(512, memoryview(bytes(GRAIN)))
    with pytest.raises(TargetFailed, match="part of a grain"):
        sink.write(GRAIN, memoryview(bytes(512)))
    sink.write(2 * GRAIN, memoryview(bytes(GRAIN)))
    sink.write(MIB, memoryview(bytes(512)))
    sink.finish()
    sink.close()


def test_a_sparse_disk_of_one_tebibyte_is_walked_and_read_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    tracemalloc.start()
    try:
        places = [0, TIB // 3 // GRAIN * GRAIN, TIB // 2, TIB - GRAIN]
        write_sparse(path, TIB, dict.fromkeys(places, b"\x07" * GRAIN))
        with open_chain_at([path], capacity_bytes=TIB) as chain:
            assert chain.allocated() == [Extent(offset=place, length=GRAIN) for place in places]
            buffer = memoryview(bytearray(MIB))
            for offset in range(0, TIB, TIB // 512):
                chain.read_into(offset, buffer)
        assert tracemalloc.get_traced_memory()[1] < 12 * MIB
    finally:
        tracemalloc.stop()


def test_a_flat_disk_of_eight_tebibytes_shows_its_holes(tmp_path: Path) -> None:
    try:
        path = flat_disk(tmp_path, 8 * TIB, {3 * TIB: b"a" * MIB})
    except TargetFailed as error:
        pytest.skip(f"needs a file system with files of 8 TiB below TMPDIR: {error}")
    with open_chain_at([path]) as chain:
        allocated = chain.allocated()
    if allocated == [Extent(offset=0, length=8 * TIB)]:
        pytest.skip("needs a file system that knows holes below TMPDIR")
    assert allocated == [Extent(offset=3 * TIB, length=MIB)]


def test_very_many_pieces_are_joined_so_that_the_list_stays_bounded(tmp_path: Path) -> None:
    capacity_bytes = 150_000 * 1024
    base = flat_disk(tmp_path, capacity_bytes, {})
    image = cowd_bytes(capacity_bytes, {2 * n: b"a" * 512 for n in range(140_000)})
    child = write_redo_log(
        tmp_path, "c", "vmfsSparse", capacity_bytes, image, parent_cid=7, hint="base.vmdk"
    )
    with open_chain_at([base, child]) as chain:
        allocated = chain.allocated()
    assert len(allocated) <= 65536
    assert allocated[0].offset == 0
    assert allocated[-1].end >= 139_999 * 1024 + 512
    assert all(a.end < b.offset for a, b in pairwise(allocated))


def test_reading_past_the_end_is_a_short_read(tmp_path: Path) -> None:
    with open_chain_at([flat_disk(tmp_path, MIB, {})]) as chain:
        for offset, length in ((MIB, 1), (MIB - 1, 2), (-1, 1)):
            with pytest.raises(ShortRead):
                chain.read_into(offset, memoryview(bytearray(length)))
        chain.read_into(MIB, memoryview(bytearray()))


def test_a_file_that_shrinks_under_us_fails_the_source(tmp_path: Path) -> None:
    with open_chain_at([flat_disk(tmp_path, MIB, {0: b"a" * MIB})]) as chain:
        os.truncate(tmp_path / "base-flat.vmdk", 4096)
        with pytest.raises(SourceFailed, match="became shorter"):
            chain.read_into(0, memoryview(bytearray(MIB)))


def test_a_missing_file_fails_the_source(tmp_path: Path) -> None:
    path = flat_disk(tmp_path, MIB, {})
    (tmp_path / "base-flat.vmdk").unlink()
    with pytest.raises(SourceFailed, match="cannot be opened"):
        open_chain_at([path])


def test_the_directory_may_be_closed_after_opening(tmp_path: Path) -> None:
    path = flat_disk(tmp_path, MIB, {0: b"a" * 512})
    directory_fd = os.open(tmp_path, os.O_RDONLY)
    image = ImageName(directory_fd=directory_fd, name=path.name)
    assert read_descriptor(image).content_id == 7
    chain = open_chain([image])
    os.close(directory_fd)
    buffer = bytearray(512)
    chain.read_into(0, memoryview(buffer))
    assert buffer == b"a" * 512
    chain.close()
    chain.close()


def test_all_files_are_closed_when_opening_fails(tmp_path: Path) -> None:
    path = flat_disk(tmp_path, MIB, {})
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(FormatError):
            open_chain_at([path, path])
        with pytest.raises(FormatError):
            open_chain_at([path], capacity_bytes=512)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("count", [0, 257])
def test_a_chain_has_one_to_256_images(tmp_path: Path, count: int) -> None:
    path = flat_disk(tmp_path, MIB, {})
    with pytest.raises(FormatError, match="1 to 256 images"):
        open_chain_at([path] * count)


def test_a_zero_extent_reads_as_zero(tmp_path: Path) -> None:
    (tmp_path / "a-f001.vmdk").write_bytes(b"a" * MIB)
    extents = [
        ExtentLine(kind=ExtentKind.FLAT, length=512, file_name="a-f001.vmdk", file_offset=512),
        ExtentLine(kind=ExtentKind.ZERO, length=MIB),
        ExtentLine(kind=ExtentKind.FLAT, length=MIB - 512, file_name="a-f001.vmdk"),
    ]
    path = tmp_path / "a.vmdk"
    path.write_text(descriptor_text(create_type=CreateType.TWO_GB_FLAT, extents=extents))
    with open_chain_at([path]) as chain:
        buffer = bytearray(b"x" * chain.capacity_bytes)
        chain.read_into(0, memoryview(buffer))
    assert buffer == b"a" * 512 + bytes(MIB) + b"a" * (MIB - 512)


@pytest.mark.parametrize("direct", [False, True])
def test_a_flat_disk_is_read_by_several_threads_at_once(tmp_path: Path, direct: bool) -> None:
    content = random.Random(3).randbytes(8 * MIB + 512 * 5)
    path = flat_disk(tmp_path, len(content), {0: content})
    with ThreadPoolExecutor(4) as threads, closing(open_chain_at([path], direct=direct)) as disk:
        assert disk.reads_side_by_side

        def is_right(number: int) -> bool:
            chance = random.Random(number)
            offset = chance.randrange(0, len(content) // 512) * 512
            length = min(chance.choice([512, 4096, 65536, MIB, MIB + 512]), len(content) - offset)
            target = memoryview(mmap.mmap(-1, 2 * MIB))[chance.choice([0, 0, 512]) :][:length]
            disk.read_into(offset // 4096 * 4096 if number % 2 else offset, target)
            start = offset // 4096 * 4096 if number % 2 else offset
            return bytes(target) == content[start : start + length]

        assert all(threads.map(is_right, range(200)))


def test_a_sparse_disk_says_that_it_is_read_by_one_thread(tmp_path: Path) -> None:
    write_sparse(tmp_path / "disk.vmdk", MIB, {0: bytes(512)})
    with closing(open_chain_at([tmp_path / "disk.vmdk"])) as disk:
        assert not disk.reads_side_by_side
