"""Stream-optimised VMDKs in one pass: complete or refused, and never much memory."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.errors import FormatError, ShortRead, TargetFailed
from holdfast_common.formats.vmdk_stream_optimized import StreamOptimizedReader
from holdfast_common.formats.vmdk_stream_writer import StreamOptimizedWriter

MIB = 1 << 20
GRAIN = 65536
CAPACITY = 70 * MIB + 512
U64 = (1 << 64) - 1


def made(capacity_bytes: int, writes: dict[int, bytes]) -> bytearray:
    stream = io.BytesIO()
    sink = StreamOptimizedWriter(stream, capacity_bytes)
    for offset, data in sorted(writes.items()):
        sink.write(offset, memoryview(data))
    sink.finish()
    sink.close()
    return bytearray(stream.getvalue())


def good_stream() -> bytearray:
    """Two tables with two grains of incompressible data each; nothing in the third."""
    source = random.Random(1)
    offsets = (0, 5 * GRAIN, 33 * MIB, 33 * MIB + GRAIN)
    return made(CAPACITY, {offset: source.randbytes(GRAIN) for offset in offsets})


class Trickle:
    """A stream that gives less than was asked for, as a socket does."""

    def __init__(self, data: bytes | bytearray, *, piece: int) -> None:
        self._stream = io.BytesIO(data)
        self._piece = piece

    def read(self, size: int, /) -> bytes:
        return self._stream.read(min(size, self._piece))


def read_all(data: bytes | bytearray, *, piece: int = 10_000) -> dict[int, bytes]:
    reader = StreamOptimizedReader(Trickle(data, piece=piece))
    return {offset: bytes(view) for offset, view in reader.blocks()}


def markers(data: bytes | bytearray) -> Iterator[tuple[int, int, int, int]]:
    """(offset, value, size, kind) of each marker."""
    offset = 65536
    while True:
        value, size, kind = struct.unpack_from("<QII", data, offset)
        yield offset, value, size, kind
        if size:
            offset += -(-(12 + size) // 512) * 512
        elif kind == 0:
            return
        else:
            offset += (1 + value) * 512


def marker_offset(data: bytes | bytearray, kind: int, *, skip: int = 0) -> int:
    found = [offset for offset, _value, size, k in markers(data) if not size and k == kind]
    return found[skip]


def grain_offset(data: bytes | bytearray, number: int) -> int:
    return [offset for offset, _value, size, _kind in markers(data) if size][number]


@pytest.mark.parametrize("piece", [1 << 30, 4096, 511, 13])
def test_a_stream_is_read_in_whatever_pieces_it_comes(piece: int) -> None:
    data = good_stream()
    blocks = read_all(data, piece=piece)
    assert sorted(blocks) == [0, 5 * GRAIN, 33 * MIB, 33 * MIB + GRAIN]
    assert blocks[0] == random.Random(1).randbytes(GRAIN)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_written_is_what_is_read(data: st.DataObject) -> None:
    capacity_sectors = data.draw(st.integers(1, 1500))
    cuts = sorted(data.draw(st.lists(st.integers(0, capacity_sectors), max_size=8)))
    seed = data.draw(st.integers(0, 1000))
    source = random.Random(seed)
    expected = bytearray(capacity_sectors * 512)
    writes = {}
    for start, end in zip(cuts[::2], cuts[1::2], strict=False):
        if end > start:
            length = (end - start) * 512
            piece = source.choice([source.randbytes(length), bytes(length)])
            writes[start * 512] = piece
            expected[start * 512 : end * 512] = piece
    found = bytearray(capacity_sectors * 512)
    for offset, block in read_all(made(len(expected), writes)).items():
        assert any(block) or not block, "zero grains are left out"
        found[offset : offset + len(block)] = block
    assert found == expected


def test_an_empty_disk_keeps_its_size() -> None:
    data = made(CAPACITY, {})
    reader = StreamOptimizedReader(io.BytesIO(data))
    assert reader.capacity_bytes == CAPACITY
    assert list(reader.blocks()) == []


def test_the_header_says_what_esxi_asks_for() -> None:
    data = good_stream()
    fields = struct.unpack_from("<4sIIQQQQIQQQB4sH", data)
    assert fields == (
        b"KDMV",
        3,
        0x30001,
        CAPACITY // 512,
        128,
        1,
        1,
        512,
        0,
        U64,
        128,
        0,
        b"\n \r\n",
        1,
    )
    kinds = [("grain" if size else kind) for _offset, _value, size, kind in markers(data)]
    assert kinds == ["grain", "grain", 1, "grain", "grain", 1, 2, 3, 0]


@pytest.mark.parametrize("length", [*range(0, 2048, 100), 65536, 65600, 131072 + 600])
def test_a_stream_that_ends_early_is_never_a_whole_disk(length: int) -> None:
    data = good_stream()
    with pytest.raises(ShortRead, match="before its end-of-stream marker"):
        read_all(data[:length])


def test_every_sector_is_needed() -> None:
    data = made(CAPACITY, {0: b"\x01" * GRAIN, 33 * MIB: b"\x02" * GRAIN})
    for end in range(65536, len(data), 512):
        with pytest.raises(ShortRead):
            read_all(data[:end])
    read_all(data)


def without(first: int, end: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        del data[first:end]

    return change


def drop_grain(number: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        offset = grain_offset(data, number)
        size = struct.unpack_from("<I", data, offset + 8)[0]
        del data[offset : offset + -(-(12 + size) // 512) * 512]

    return change


def drop_table(number: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        offset = marker_offset(data, 1, skip=number)
        del data[offset : offset + 5 * 512]

    return change


def drop_first_table_with_its_grains(data: bytearray) -> None:
    del data[grain_offset(data, 0) : grain_offset(data, 2)]


def repeat_grain(data: bytearray) -> None:
    first, second = grain_offset(data, 0), grain_offset(data, 1)
    data[second:second] = data[first:second]


def swap_grains(data: bytearray) -> None:
    first, second = grain_offset(data, 0), grain_offset(data, 1)
    end = marker_offset(data, 1)
    data[first:end] = data[second:end] + data[first:second]


def at(
    where: Callable[[bytearray], int], form: str, value: int | bytes
) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into("<" + form, data, where(data), value)


def header(offset: int, form: str, value: int | bytes) -> Callable[[bytearray], None]:
    return at(lambda _data: offset, form, value)


def grain(number: int, offset: int, form: str, value: int | bytes) -> Callable[[bytearray], None]:
    return at(lambda data: grain_offset(data, number) + offset, form, value)


def marker(kind: int, offset: int, form: str, value: int | bytes) -> Callable[[bytearray], None]:
    return at(lambda data: marker_offset(data, kind) + offset, form, value)


def insert(kind: int, sectors: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        place = marker_offset(data, kind)
        data[place:place] = sectors

    return change


def metadata(value: int, kind: int) -> bytes:
    return struct.pack("<QII496x", value, 0, kind)


EVIL: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "magic": (header(0, "4s", b"COWD"), "bad magic"),
    "version 0": (header(4, "I", 0), "unknown version"),
    "version 4": (header(4, "I", 4), "unknown version"),
    "flags without markers": (header(8, "I", 0x10001), "contradict"),
    "no flags": (header(8, "I", 1), "contradict"),
    "unknown flags": (header(8, "I", 0x40030001), "unknown flags"),
    "capacity 0": (header(12, "Q", 0), "capacity"),
    "capacity huge": (header(12, "Q", U64), "capacity"),
    "capacity of another disk": (header(12, "Q", CAPACITY // 512 + 128), "differ in capacity"),
    "grain 0": (header(20, "Q", 0), "grain size"),
    "grain 5": (header(20, "Q", 5), "grain size"),
    "grain 4 KiB": (header(20, "Q", 8), "grains below 64 KiB"),
    "grain 2 MiB": (header(20, "Q", 4096), "grain size"),
    "descriptor at 0": (header(28, "Q", 0), "descriptor is not between"),
    "descriptor behind the overhead": (header(28, "Q", 500), "descriptor is not between"),
    "descriptor huge": (header(36, "Q", U64), "larger than 1 MiB"),
    "descriptor empty": (header(36, "Q", 0), "descriptor is not between"),
    "entries": (header(44, "I", 1024), "512 entries"),
    "directory at the front": (header(56, "Q", 60), "made for random access"),
    "directory 0": (header(56, "Q", 0), "no grain directory"),
    "overhead 0": (header(64, "Q", 0), "descriptor is not between"),
    "overhead huge": (header(64, "Q", 1 << 31), "beyond 2 MiB"),
    "overhead too short": (header(64, "Q", 127), "without a footer"),
    "transferred as text": (header(73, "4s", b"\n \n\n"), "transferred as text"),
    "uncompressed": (header(77, "H", 0), "contradict"),
    "kind of another disk": (header(512 + 110, "4s", b"evil"), ""),
    "grain outside of the disk": (grain(3, 0, "Q", CAPACITY // 512 + 127), "not at a grain"),
    "grain between grains": (grain(1, 0, "Q", 641), "not at a grain"),
    "grain far outside": (grain(1, 0, "Q", U64 - 127), "not at a grain"),
    "grain again": (grain(1, 0, "Q", 0), "do not ascend"),
    "grain before the last": (grain(3, 0, "Q", 128), "do not ascend"),
    "grain of another place": (grain(1, 0, "Q", 256), "differs from the grains"),
    "grain too long": (grain(1, 8, "I", 131073), "too long"),
    "grain huge": (grain(1, 8, "I", 0xFFFFFFFF), "too long"),
    "grain cut off": (grain(1, 8, "I", 60_000), "cut off"),
    "grain with more": (grain(1, 8, "I", 65560), ""),
    "grain not deflated": (grain(1, 12, "4s", b"evil"), "cannot be inflated"),
    "grain changed": (grain(1, 4000, "4s", b"evil"), "cannot be inflated"),
    "grain lost": (drop_grain(0), "differs from the grains"),
    "last grain lost": (drop_grain(3), "differs from the grains"),
    "grain twice": (repeat_grain, "do not ascend"),
    "grains swapped": (swap_grains, "do not ascend"),
    "first table lost": (drop_table(0), "no grain table"),
    "last table lost": (drop_table(1), "no grain table"),
    "table with its grains lost": (drop_first_table_with_its_grains, "differs from"),
    "table's length": (marker(1, 0, "Q", 5), "wrong length"),
    "table's length huge": (marker(1, 0, "Q", U64), "wrong length"),
    "table's entry": (marker(1, 512, "I", 999), "differs from the grains"),
    "table's empty entry": (marker(1, 512 + 8, "I", 999), "differs from the grains"),
    "table's last entry": (marker(1, 512 + 2044, "I", 999), "differs from the grains"),
    "directory's length": (marker(2, 0, "Q", 2), "wrong length"),
    "directory's length huge": (marker(2, 0, "Q", U64), "wrong length"),
    "directory's entry": (marker(2, 512, "I", 129), "grain directory differs"),
    "directory's entry lost": (marker(2, 512, "I", 0), "grain directory differs"),
    "directory's empty entry": (marker(2, 512 + 8, "I", 999), "grain directory differs"),
    "directory's fill": (marker(2, 512 + 508, "I", 999), "grain directory differs"),
    "two directories": (insert(3, metadata(1, 2) + bytes(512)), "second grain directory"),
    "table after the directory": (insert(3, metadata(4, 1) + bytes(2048)), "after the grain dir"),
    "grain after the directory": (insert(3, struct.pack("<QI500x", 0, 5)), "after the grain dir"),
    "no directory": (
        lambda data: without(marker_offset(data, 2), marker_offset(data, 3))(data),
        "another place",
    ),
    "footer's length": (marker(3, 0, "Q", 2), "wrong length"),
    "footer's magic": (marker(3, 512, "4s", b"evil"), "bad magic"),
    "footer's capacity": (marker(3, 512 + 12, "Q", 128), "footer differs"),
    "footer's grain": (marker(3, 512 + 20, "Q", 256), "footer differs"),
    "footer's overhead": (marker(3, 512 + 64, "Q", 256), "footer differs"),
    "footer's version": (marker(3, 512 + 4, "I", 1), "footer differs"),
    "footer's directory": (marker(3, 512 + 56, "Q", 200), "another place"),
    "footer's directory at the end": (marker(3, 512 + 56, "Q", U64), "names no grain directory"),
    "two footers": (
        lambda data: insert(0, bytes(data[marker_offset(data, 3) : marker_offset(data, 0)]))(data),
        "after the footer",
    ),
    "no footer": (
        lambda data: without(marker_offset(data, 3), marker_offset(data, 0))(data),
        "without a footer",
    ),
    "end in the middle": (insert(1, metadata(0, 0)), "without a footer"),
    "unknown marker": (insert(1, metadata(0, 4)), "unknown kind"),
    "marker 0xffffffff": (insert(1, metadata(0, 0xFFFFFFFF)), "unknown kind"),
}


@pytest.mark.parametrize("case", EVIL)
def test_a_malformed_stream_is_refused(case: str) -> None:
    change, message = EVIL[case]
    data = good_stream()
    change(data)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            read_all(data)
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)


def test_endless_empty_tables_end() -> None:
    data = good_stream()[:65536]
    tables = (metadata(4, 1) + bytes(2048)) * 10
    with pytest.raises(FormatError, match="more grain tables than the disk has"):
        read_all(data + tables)


def test_empty_tables_may_be_written_and_named() -> None:
    data = good_stream()
    place = marker_offset(data, 2)
    data[place:place] = metadata(4, 1) + bytes(2048)
    directory = marker_offset(data, 2)
    struct.pack_into("<I", data, directory + 512 + 8, place // 512 + 1)
    struct.pack_into("<Q", data, marker_offset(data, 3) + 512 + 56, directory // 512 + 1)
    assert len(read_all(data)) == 4


def test_a_gibibyte_of_zeros_in_one_grain_is_refused_in_little_memory() -> None:
    squeezer = zlib.compressobj(9)
    bomb = b"".join(squeezer.compress(bytes(MIB)) for _ in range(128)) + squeezer.flush()
    data = good_stream()[:65536] + struct.pack("<QI", 0, len(bomb[:131072])) + bomb[:131072]
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="inflates to more than its size"):
            read_all(data + bytes(512))
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()


def test_a_disk_larger_than_the_inventory_says_is_refused() -> None:
    with pytest.raises(FormatError, match="larger than the disk is known to be"):
        StreamOptimizedReader(io.BytesIO(good_stream()), capacity_bytes_max=CAPACITY - 512)


@settings(max_examples=300, deadline=None)
@given(
    place=st.integers(0, 300),
    value=st.integers(0, 255),
    region=st.sampled_from(["header", "marker", "table", "directory", "footer", "anywhere"]),
)
def test_no_damage_makes_another_disk(place: int, value: int, region: str) -> None:
    """A changed byte is refused, or changes nothing of what is read."""
    data = good_stream()
    places = {
        "header": 0,
        "marker": grain_offset(data, 1),
        "table": marker_offset(data, 1),
        "directory": marker_offset(data, 2),
        "footer": marker_offset(data, 3) + 512,
        "anywhere": place * 997 % len(data),
    }
    data[(places[region] + place) % len(data)] = value
    try:
        blocks = read_all(data)
    except (FormatError, ShortRead):
        return
    assert blocks == read_all(good_stream())


def test_writing_keeps_its_rules() -> None:
    sink = StreamOptimizedWriter(io.BytesIO(), MIB)
    sink.write(65536, memoryview(bytes(1024)))
    for offset, length in ((0, 512), (65536 + 512, 512), (MIB, 512), (MIB - 512, 1024)):
        with pytest.raises(TargetFailed, match="not ascending or leaves the disk"):
            sink.write(offset, memoryview(bytes(length)))
    with pytest.raises(TargetFailed, match="no whole sectors"):
        sink.write(MIB - 512, memoryview(bytes(100)))
    sink.finish()
    with pytest.raises(TargetFailed, match="after it was finished"):
        sink.write(MIB - 512, memoryview(bytes(512)))
    with pytest.raises(TargetFailed, match="finished twice"):
        sink.finish()
    for capacity_bytes in (0, 100, 513, -512, (64 << 40) + 512):
        with pytest.raises(TargetFailed):
            StreamOptimizedWriter(io.BytesIO(), capacity_bytes)


class Failing:
    """A stream whose peer goes away."""

    def __init__(self, *, after: int) -> None:
        self.left = after

    def write(self, data: bytes, /) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return len(data)


def test_a_stream_that_breaks_fails_the_target() -> None:
    sink = StreamOptimizedWriter(Failing(after=100_000), MIB)
    with pytest.raises(TargetFailed, match="stream cannot be written"):
        sink.write(0, memoryview(random.Random(0).randbytes(MIB)))


class Small:
    """A stream that takes a little at a time."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes, /) -> int:
        self.data += data[:700]
        return min(len(data), 700)


def test_a_stream_that_takes_little_gets_all() -> None:
    stream = Small()
    sink = StreamOptimizedWriter(stream, MIB)
    content = random.Random(0).randbytes(MIB)
    sink.write(0, memoryview(content))
    sink.finish()
    assert b"".join(block for _offset, block in sorted(read_all(stream.data).items())) == content


class Counting:
    """A stream that only counts."""

    def write(self, data: bytes, /) -> int:
        return len(data)


def test_a_disk_of_62_tib_is_written_in_little_memory() -> None:
    capacity_bytes = 62 << 40
    tracemalloc.start()
    try:
        sink = StreamOptimizedWriter(Counting(), capacity_bytes)
        block = memoryview(b"\x01" * MIB)
        for offset in range(0, capacity_bytes, 1 << 38):
            sink.write(offset, block)
        sink.finish()
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()
