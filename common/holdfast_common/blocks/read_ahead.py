"""A thread that reads a disk ahead of whoever uses it, in a few buffers that are used again.

Inside `stream`: between a source and the iteration over its blocks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from holdfast_common.direct_writes import page_aligned
from holdfast_common.errors import SourceFailed
from holdfast_common.units import MIB

WINDOW_BYTES: Final = MIB  # what the repository stores as one frame
READ_AHEAD_WINDOWS: Final = 8  # 8 x 1 MiB per stream hide a slow read; 16 streams = 128 MiB
_PIECES_MAX: Final = 64  # zeros need no buffer, so their number has a bound of its own
_LOOK_SECONDS: Final = 0.5  # how soon a waiting consumer hears that its job must stop
_STOP_SECONDS_MAX: Final = 30.0  # a read that does not come back in this time is left alone


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a disk, ascending; ``data`` None: all zeros, of any length.

    ``data`` is valid until the next block is asked for.
    """

    offset: int
    length: int
    data: memoryview | None

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Piece:
    """What the reading thread hands over at once: blocks, and the buffer that they lie in."""

    blocks: list[Block]
    buffer: memoryview | None = None
    read_bytes: int = 0


class Stopped(Exception):
    """Ends the reading thread when nobody wants its blocks any more; never leaves this module."""


class BufferPool:
    """Page-aligned buffers of one window each, made when first needed. Thread-safe."""

    def __init__(self, count: int) -> None:
        self._condition = threading.Condition()
        self._free: deque[memoryview] = deque()
        self._unmade = count
        self._stopped = False

    def take(self) -> memoryview:
        """A buffer; waits for one to come back. Raises: Stopped."""
        with self._condition:
            while not self._stopped:
                if self._free:
                    return self._free.pop()
                if self._unmade:
                    self._unmade -= 1
                    return page_aligned(WINDOW_BYTES)
                self._condition.wait(_LOOK_SECONDS)
            raise Stopped

    def give_back(self, buffer: memoryview) -> None:
        """The buffer may be filled again."""
        with self._condition:
            self._free.append(buffer)
            self._condition.notify_all()

    def stop(self) -> None:
        """Wake whoever waits."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()


class ReadAhead:
    """Pieces made by ``produce`` on a thread of its own, taken in order by one consumer.

    What ``produce`` raises is raised by `pieces`, after all that was read before it.
    """

    def __init__(self, produce: Callable[[BufferPool], Iterator[Piece]]) -> None:
        self._produce = produce
        self._pool = BufferPool(READ_AHEAD_WINDOWS)
        self._condition = threading.Condition()
        self._ready: deque[Piece] = deque()
        self._ended = False
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def pieces(self, check: Callable[[], None]) -> Iterator[Piece]:
        """All pieces in order; a piece's buffer is given back when the next one is asked for.

        ``check`` is called while waiting and before every piece; what it raises ends the iteration.
        """
        while (piece := self._next(check)) is not None:
            yield piece
            if piece.buffer is not None:
                self._pool.give_back(piece.buffer)

    def stop(self) -> None:
        """End the thread; a second time does nothing.

        Raises: SourceFailed, when a read does not come back.
        """
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        self._pool.stop()
        if self._thread.ident is None:
            return
        self._thread.join(_STOP_SECONDS_MAX)
        if self._thread.is_alive():
            raise SourceFailed(
                "a read of the disk does not come back", waited_seconds=_STOP_SECONDS_MAX
            )

    def _next(self, check: Callable[[], None]) -> Piece | None:
        while True:
            check()
            with self._condition:
                if self._ready:
                    piece = self._ready.popleft()
                    self._condition.notify_all()
                    return piece
                if self._ended:
                    break
                self._condition.wait(_LOOK_SECONDS)
        if self._error is not None:
            raise self._error
        return None

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for piece in self._produce(self._pool):
                self._hand_over(piece)
        except Stopped:
            pass
        except BaseException as failure:  # noqa: BLE001 - raised again by the consumer, in order
            error = failure
        with self._condition:
            self._error = error
            self._ended = True
            self._condition.notify_all()

    def _hand_over(self, piece: Piece) -> None:
        with self._condition:
            while len(self._ready) >= _PIECES_MAX and not self._stopped:
                self._condition.wait(_LOOK_SECONDS)
            if self._stopped:
                raise Stopped
            self._ready.append(piece)
            self._condition.notify_all()
