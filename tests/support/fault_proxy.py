"""A TCP proxy that can fall silent or cut: the network between two real programs, gone bad."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class FaultProxy:
    """Forwards to 127.0.0.1:target_port from a port of its own. Methods are for any thread."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._silent = threading.Event()
        self._refusing = threading.Event()
        self._pairs: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self.port = 0
        self.connections = 0

    def start(self) -> None:
        self._thread.start()
        assert self._listening.wait(20)

    def retarget(self, target_port: int) -> None:
        """New connections go there."""
        self._target_port = target_port

    def fall_silent(self) -> None:
        """Swallow everything from now on, both ways; connections stay open. New ones get nothing."""
        self._silent.set()

    def speak_again(self) -> None:
        """New connections work again; those that lost bytes are cut."""
        self.cut()
        self._silent.clear()

    def cut(self) -> None:
        """Close all connections now."""
        done = threading.Event()

        def close() -> None:
            for writer in list(self._pairs):
                with contextlib.suppress(Exception):
                    writer.transport.abort()
            done.set()

        self._loop.call_soon_threadsafe(close)
        assert done.wait(20)

    def refuse(self, refusing: bool) -> None:
        """Close new connections at once."""
        (self._refusing.set if refusing else self._refusing.clear)()

    def stop(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connected, "127.0.0.1", 0)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._pairs.add(writer)
        try:
            if self._refusing.is_set():
                writer.transport.abort()
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        self._pairs.add(far_writer)
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._pairs -= {writer, far_writer}
            for end in (writer, far_writer):
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lost = False
        with contextlib.suppress(ConnectionError, OSError):
            while content := await reader.read(65536):
                lost = lost or self._silent.is_set()
                if not lost:  # a stream that has lost bytes can only be cut, never go on
                    writer.write(content)
                    await writer.drain()
            if not lost:
                writer.transport.abort()


@contextmanager
def fault_proxy(target_port: int) -> Iterator[FaultProxy]:
    proxy = FaultProxy(target_port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
