"""Redo logs that ESXi writes: vmfsSparse and SE sparse above a base, judged by qemu."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from holdfast_common.errors import FormatError, SourceFailed
from holdfast_common.extents import Extent
from holdfast_common.formats.vmdk_chain import open_chain_at
from holdfast_common.formats.vmdk_descriptor import CreateType, ExtentKind, ExtentLine
from holdfast_common.formats.vmdk_descriptor_text import descriptor_text
from support.vmdk_images import MIB, chain_to_raw, make_raw, needs_qemu, qemu_img
from support.vmdk_redo_logs import (
    SE_UNMAPPED,
    SE_ZERO,
    cowd_bytes,
    sesparse_bytes,
    write_redo_log,
)

BASE_CID = 0x12345678
CAPACITIES = [512, 4096, 4096 * 3 + 512, 2 * MIB, 17 * MIB + 512, 40 * MIB + 7 * 512]


def make_base(folder: Path, capacity_bytes: int) -> Path:
    make_raw(folder / "base-flat.vmdk", capacity_bytes, seed=capacity_bytes)
    extent = ExtentLine(kind=ExtentKind.VMFS, length=capacity_bytes, file_name="base-flat.vmdk")
    path = folder / "base.vmdk"
    path.write_text(
        descriptor_text(create_type=CreateType.VMFS, extents=[extent], content_id=BASE_CID)
    )
    return path


def random_grains(capacity_bytes: int, grain_bytes: int, *, zeros: bool) -> dict[int, bytes]:
    """Random grains in random order; the first and the last are among them."""
    source = random.Random(capacity_bytes)
    count = -(-capacity_bytes // grain_bytes)
    indexes = {0, count - 1, *(source.randrange(count) for _ in range(40))}
    run = source.randrange(count)
    indexes |= set(range(run, min(run + 20, count)))  # neighbours, so that runs are merged
    chosen = list(indexes)
    source.shuffle(chosen)
    special = [SE_ZERO, SE_UNMAPPED] if zeros else []
    return {index: source.choice([source.randbytes(grain_bytes)] * 6 + special) for index in chosen}


def redo_log(folder: Path, name: str, kind: str, capacity_bytes: int, *, parent: str) -> Path:
    if kind == "seSparse":
        data = sesparse_bytes(capacity_bytes, random_grains(capacity_bytes, 4096, zeros=True))
    else:
        data = cowd_bytes(capacity_bytes, random_grains(capacity_bytes, 512, zeros=False))
    cid = BASE_CID if parent == "base.vmdk" else 0x0BADCAFE
    return write_redo_log(folder, name, kind, capacity_bytes, data, parent_cid=cid, hint=parent)


@needs_qemu
@pytest.mark.parametrize("capacity_bytes", CAPACITIES)
@pytest.mark.parametrize("kind", ["vmfsSparse", "seSparse"])
def test_a_redo_log_is_read_as_qemu_reads_it(
    tmp_path: Path, kind: str, capacity_bytes: int
) -> None:
    base = make_base(tmp_path, capacity_bytes)
    child = redo_log(tmp_path, "disk-000001", kind, capacity_bytes, parent=base.name)
    qemu_img("convert", "-f", "vmdk", "-O", "raw", child, tmp_path / "qemu.raw")
    chain_to_raw([base, child], tmp_path / "ours.raw", step=65536 - 512)
    qemu_img("compare", "-f", "raw", "-F", "raw", tmp_path / "qemu.raw", tmp_path / "ours.raw")


@needs_qemu
@pytest.mark.parametrize("kind", ["vmfsSparse", "seSparse"])
def test_a_deep_chain_is_read_through_to_its_base(tmp_path: Path, kind: str) -> None:
    capacity_bytes = 9 * MIB + 512
    paths = [make_base(tmp_path, capacity_bytes)]
    for number in range(1, 31):
        name = f"disk-{number:06d}"
        parent = paths[-1].name
        grain = 4096 if kind == "seSparse" else 512
        grains = {number: bytes([number]) * grain, 5 + number % 3: b"\xff" * grain}
        data = (sesparse_bytes if kind == "seSparse" else cowd_bytes)(capacity_bytes, grains)
        cid = BASE_CID if number == 1 else 0x0BADCAFE
        paths.append(
            write_redo_log(tmp_path, name, kind, capacity_bytes, data, parent_cid=cid, hint=parent)
        )
    qemu_img("convert", "-f", "vmdk", "-O", "raw", paths[-1], tmp_path / "qemu.raw")
    chain_to_raw(paths, tmp_path / "ours.raw")
    qemu_img("compare", "-f", "raw", "-F", "raw", tmp_path / "qemu.raw", tmp_path / "ours.raw")


def test_a_larger_grain_of_a_redo_log_is_read(tmp_path: Path) -> None:
    base = make_base(tmp_path, 3 * MIB)
    data = cowd_bytes(3 * MIB, {2: b"A" * 65536}, grain_sectors=128)
    child = write_redo_log(
        tmp_path, "c", "vmfsSparse", 3 * MIB, data, parent_cid=BASE_CID, hint="base.vmdk"
    )
    with open_chain_at([base, child]) as chain:
        buffer = bytearray(65536 * 2)
        chain.read_into(65536, memoryview(buffer))
    assert buffer[65536:] == b"A" * 65536
    assert buffer[:65536] == (tmp_path / "base-flat.vmdk").read_bytes()[65536 : 2 * 65536]


def test_only_what_differs_from_zero_is_allocated(tmp_path: Path) -> None:
    capacity_bytes = 1 << 40
    (tmp_path / "base-flat.vmdk").touch()
    os.truncate(tmp_path / "base-flat.vmdk", capacity_bytes)
    extent = ExtentLine(kind=ExtentKind.VMFS, length=capacity_bytes, file_name="base-flat.vmdk")
    base = tmp_path / "base.vmdk"
    base.write_text(
        descriptor_text(create_type=CreateType.VMFS, extents=[extent], content_id=BASE_CID)
    )
    with (tmp_path / "base-flat.vmdk").open("r+b") as file:
        file.seek(MIB)
        file.write(b"x" * MIB)
    last = capacity_bytes // 4096 - 1
    data = sesparse_bytes(
        capacity_bytes, {256: SE_ZERO, 300: SE_UNMAPPED, 600: b"y" * 4096, last: b"z" * 4096}
    )
    child = write_redo_log(
        tmp_path, "c", "seSparse", capacity_bytes, data, parent_cid=BASE_CID, hint="base.vmdk"
    )
    with open_chain_at([base, child], capacity_bytes=capacity_bytes) as chain:
        assert chain.allocated() == [
            Extent(offset=257 * 4096, length=43 * 4096),
            Extent(offset=301 * 4096, length=2 * MIB - 301 * 4096),
            Extent(offset=600 * 4096, length=4096),
            Extent(offset=last * 4096, length=4096),
        ]


def test_an_image_of_another_state_of_its_parent_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path, MIB)
    child = write_redo_log(
        tmp_path,
        "c",
        "vmfsSparse",
        MIB,
        cowd_bytes(MIB, {0: b"a" * 512}),
        parent_cid=0x11111111,
        hint="base.vmdk",
    )
    with pytest.raises(FormatError, match="another state of its parent"):
        open_chain_at([base, child])
    with open_chain_at([base, child], check_links=False) as chain:
        assert chain.capacity_bytes == MIB


def test_a_chain_without_its_base_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path, MIB)
    child = redo_log(tmp_path, "c", "seSparse", MIB, parent="base.vmdk")
    with pytest.raises(FormatError, match="has a parent itself"):
        open_chain_at([child])
    with pytest.raises(FormatError, match="no parent"):
        open_chain_at([base, base])
    with pytest.raises(FormatError, match="another size"):
        open_chain_at([base, child], capacity_bytes=2 * MIB)


def test_images_of_different_size_are_no_chain(tmp_path: Path) -> None:
    base = make_base(tmp_path, MIB)
    child = redo_log(tmp_path, "c", "seSparse", 2 * MIB, parent="base.vmdk")
    with pytest.raises(FormatError, match="differ in size"):
        open_chain_at([base, child])


def test_a_waiting_journal_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path, MIB)
    data = sesparse_bytes(MIB, {0: b"a" * 4096})
    data[512 + 24] = 1
    child = write_redo_log(
        tmp_path, "c", "seSparse", MIB, data, parent_cid=BASE_CID, hint="base.vmdk"
    )
    with pytest.raises(FormatError, match="journal"):
        open_chain_at([base, child])


def test_images_may_lie_in_different_folders(tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "clone").mkdir()
    base = make_base(tmp_path / "golden", MIB)
    child = redo_log(tmp_path / "clone", "c", "vmfsSparse", MIB, parent="base.vmdk")
    with open_chain_at([base, child]) as chain:
        assert chain.capacity_bytes == MIB


def test_reading_past_the_page_cache_gives_the_same(tmp_path: Path) -> None:
    base = make_base(tmp_path, 9 * MIB + 512)
    child = redo_log(tmp_path, "c", "vmfsSparse", 9 * MIB + 512, parent="base.vmdk")
    chain_to_raw([base, child], tmp_path / "cached.raw")
    try:
        chain_to_raw([base, child], tmp_path / "direct.raw", direct=True, step=3 * MIB + 512)
    except SourceFailed as error:
        pytest.skip(f"needs a file system with O_DIRECT below TMPDIR: {error}")
    assert (tmp_path / "cached.raw").read_bytes() == (tmp_path / "direct.raw").read_bytes()
