"""Watching what a parser does with a hostile image: which files it opens, how much memory it takes."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast_common.errors import FormatError
from holdfast_common.formats.vmdk_chain import open_chain_at

MEMORY_BYTES_MAX = 24 << 20
_opened: list[str] = []
_armed = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _armed and event == "open":
        _opened.append(str(arguments[0]))


sys.addaudithook(_hook)


@contextmanager
def watched(allowed: Sequence[str]) -> Iterator[None]:
    """Fail if a file outside of ``allowed`` is opened, or more than 24 MiB are taken."""
    global _armed  # noqa: PLW0603  # an audit hook cannot be taken away, only switched off
    _opened.clear()
    tracemalloc.start()
    _armed = True
    try:
        yield
    finally:
        _armed = False
        _size, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert set(_opened) <= set(allowed), _opened
    assert peak <= MEMORY_BYTES_MAX, f"{peak >> 20} MiB taken"


def read_everything(paths: Sequence[Path]) -> None:
    """Open a chain, list what is allocated and read it, at most 16 MiB."""
    with open_chain_at(paths) as chain:
        buffer = memoryview(bytearray(1 << 20))
        left = 16
        chain.read_into(0, buffer[: min(len(buffer), chain.capacity_bytes)])
        for extent in chain.allocated():
            if left == 0:
                break
            left -= 1
            chain.read_into(extent.offset, buffer[: min(extent.length, len(buffer))])


def assert_refused(paths: Sequence[Path], message: str = "") -> None:
    """The chain is refused as badly formed, within bounded memory and without opening more."""
    folder = paths[0].parent
    allowed = {str(path.parent) for path in paths} | {path.name for path in folder.iterdir()}
    with watched(sorted(allowed)), pytest.raises(FormatError) as caught:
        read_everything(paths)
    assert message in str(caught.value), str(caught.value)
