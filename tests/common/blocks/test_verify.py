from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast_common.blocks.read_ahead import WINDOW_BYTES
from holdfast_common.blocks.stream import UNIT_BYTES, random_stream, sequential_stream, whole
from holdfast_common.blocks.verify import DIFFERING_MAX, Comparison, compare
from holdfast_common.errors import FormatError
from holdfast_common.extents import Extent, merged
from support.memory_disks import MemorySequentialSource, MemorySource

CAPACITY = 2 * WINDOW_BYTES + 3 * 512


def goes_on() -> None:
    """A job that nobody stops."""


def compared(expected: bytes, actual: MemorySource) -> Comparison:
    parts = whole(len(expected))
    with (
        random_stream(MemorySource(expected), parts, check=goes_on) as one,
        random_stream(actual, parts, check=goes_on) as other,
    ):
        return compare(one, other)


def test_equal_disks_do_not_differ() -> None:
    content = b"a" * WINDOW_BYTES + bytes(WINDOW_BYTES) + b"b" * 3 * 512
    result = compared(content, MemorySource(content))
    assert result == Comparison(
        compared_bytes=WINDOW_BYTES + 3 * 512, differing_bytes=0, differing=()
    )


@given(
    filled=st.booleans(),
    flips=st.lists(st.integers(0, CAPACITY - 1), min_size=1, max_size=20),
)
def test_exactly_the_sectors_with_another_byte_are_named(filled: bool, flips: list[int]) -> None:
    content = (b"\x55" if filled else b"\0") * CAPACITY
    changed = bytearray(content)
    for at in flips:
        changed[at] ^= 0xFF if changed[at] == content[at] else 0
    result = compared(content, MemorySource(bytes(changed)))
    expected = merged(Extent(offset=at // 512 * 512, length=512) for at in flips)
    assert list(result.differing) == expected
    assert result.differing_bytes == sum(extent.length for extent in expected)


def test_a_disk_that_says_it_is_empty_differs_where_there_should_be_data() -> None:
    content = bytes(UNIT_BYTES) + b"x" * UNIT_BYTES + bytes(CAPACITY - 2 * UNIT_BYTES)
    result = compared(content, MemorySource(content, allocated=[]))
    assert list(result.differing) == [Extent(offset=UNIT_BYTES, length=UNIT_BYTES)]


def test_data_where_there_should_be_zeros_is_found_in_a_sequential_disk() -> None:
    actual = bytearray(CAPACITY)
    actual[UNIT_BYTES + 5] = 1
    parts = whole(CAPACITY)
    pieces = [Extent(offset=UNIT_BYTES, length=UNIT_BYTES)]
    with (
        random_stream(MemorySource(bytes(CAPACITY), allocated=[]), parts, check=goes_on) as one,
        sequential_stream(
            MemorySequentialSource(bytes(actual), pieces), parts, check=goes_on
        ) as other,
    ):
        result = compare(one, other)
    assert list(result.differing) == [Extent(offset=UNIT_BYTES, length=512)]


def test_at_most_a_hundred_ranges_are_named_and_all_are_counted() -> None:
    actual = bytearray(CAPACITY)
    for sector in range(0, 400, 2):
        actual[sector * 512] = 1
    result = compared(bytes(CAPACITY), MemorySource(bytes(actual)))
    assert len(result.differing) == DIFFERING_MAX
    assert result.differing_bytes == 200 * 512


class DamagedSource(MemorySource):
    """From an offset on it cannot be decoded."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > WINDOW_BYTES:
            raise FormatError("a grain cannot be inflated")
        super().read_into(offset, buffer)


def test_a_disk_that_cannot_be_decoded_differs_from_there_on() -> None:
    content = b"a" * CAPACITY
    result = compared(content, DamagedSource(content))
    assert result.damage == "a grain cannot be inflated"
    (extent,) = result.differing
    assert extent.offset == WINDOW_BYTES
    assert result.compared_bytes == WINDOW_BYTES
