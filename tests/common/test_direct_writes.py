from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.direct_writes import (
    PAGE_BYTES,
    DirectWrites,
    ParallelWrites,
    page_aligned,
)

FILE_BYTES = 16 * PAGE_BYTES
PLACES = st.lists(
    st.tuples(
        st.integers(0, FILE_BYTES - 1),
        st.integers(1, 4 * PAGE_BYTES),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("direct")


@given(places=PLACES)
def test_whatever_is_aligned_and_what_is_not_is_written_where_it_belongs(
    folder: Path, places: list[tuple[int, int, int, bool]]
) -> None:
    path = folder / "mixed"
    expected = bytearray(FILE_BYTES + 4 * PAGE_BYTES)
    buffer = page_aligned(8 * PAGE_BYTES)
    buffer[:] = os.urandom(len(buffer))
    with path.open("w+b", buffering=0) as file:
        file.truncate(len(expected))
        writes = DirectWrites(file.fileno())
        for somewhere, some, shift, pages in places:
            offset = somewhere & -PAGE_BYTES if pages else somewhere
            length = (some | PAGE_BYTES) & -PAGE_BYTES if pages else some
            data = buffer[shift : shift + length]
            writes.write(offset, data)
            expected[offset : offset + length] = data
        assert path.read_bytes() == expected


def test_pages_are_written_past_the_cache_and_the_rest_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_direct: list[bool] = []
    pwrite = os.pwrite

    def noted(descriptor: int, data: memoryview, offset: int) -> int:
        was_direct.append(bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", noted)
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        writes = DirectWrites(file.fileno())
        writes.write(0, page_aligned(PAGE_BYTES))
        if was_direct != [True]:
            pytest.skip("needs a file system with O_DIRECT below TMPDIR")
        writes.write(PAGE_BYTES, page_aligned(PAGE_BYTES)[:512])
        writes.write(2 * PAGE_BYTES, page_aligned(3 * PAGE_BYTES))
    assert was_direct == [True, False, True]


def test_a_file_system_that_refuses_direct_writes_gets_ordinary_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def refusing(descriptor: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "not here")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    buffer = page_aligned(2 * PAGE_BYTES)
    buffer[:] = os.urandom(len(buffer))
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        DirectWrites(file.fileno()).write(PAGE_BYTES, buffer)
    assert (tmp_path / "file").read_bytes() == bytes(PAGE_BYTES) + bytes(buffer)


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with (tmp_path / "file").open("x+b", buffering=0) as file:
        reader = os.open(tmp_path / "file", os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="Bad file descriptor"):
                DirectWrites(reader).write(0, page_aligned(PAGE_BYTES))
        finally:
            os.close(reader)
        assert file.read() == b""


@given(places=PLACES)
def test_parallel_writes_put_everything_where_it_belongs_whatever_its_alignment(
    folder: Path, places: list[tuple[int, int, int, bool]]
) -> None:
    path = folder / "parallel"
    expected = bytearray(FILE_BYTES + 4 * PAGE_BYTES)
    buffer = page_aligned(8 * PAGE_BYTES)
    buffer[:] = os.urandom(len(buffer))
    taken = bytearray(len(expected))  # no byte is written twice
    with path.open("w+b", buffering=0) as file:
        file.truncate(len(expected))
        writes = ParallelWrites(file.fileno())
        for somewhere, some, shift, pages in places:
            offset = somewhere & -PAGE_BYTES if pages else somewhere
            length = (some | PAGE_BYTES) & -PAGE_BYTES if pages else some
            if any(taken[offset : offset + length]):
                continue
            taken[offset : offset + length] = b"t" * length
            data = buffer[shift : shift + length]
            writes.reserve(offset, length)
            writes.write(offset, data)
            expected[offset : offset + length] = data
        writes.finish()
        assert path.read_bytes() == expected
        assert not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_DIRECT


def test_parallel_writes_go_past_the_cache_until_a_file_system_refuses_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_direct: list[bool] = []
    pwrite = os.pwrite

    def refusing(descriptor: int, data: memoryview, offset: int) -> int:
        direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        was_direct.append(direct)
        if direct and len(was_direct) > 1:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    data = page_aligned(PAGE_BYTES)
    data[:] = b"d" * PAGE_BYTES
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        writes = ParallelWrites(file.fileno())
        for number in range(3):
            writes.write(number * PAGE_BYTES, data)
        writes.finish()
    assert was_direct == [True, True, False, False]
    assert (tmp_path / "file").read_bytes() == b"d" * 3 * PAGE_BYTES


def test_room_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b", buffering=0) as file:
        writes = ParallelWrites(file.fileno())
        with pytest.raises(OSError, match="large"):  # at once: nothing below it is reserved
            writes.reserve(1 << 60, PAGE_BYTES)
        assert (tmp_path / "file").stat().st_blocks == 0
