"""One agent's stream: what goes down it waits in a bounded queue, what comes up it is handed on.

Only on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

import grpc

from holdfast_common.errors import HoldfastError, Interrupted, Refused, UsageError
from holdfast_common.identity import AgentId
from holdfast_common.job_result import ErrorReport
from holdfast_common.trust.peer import Peer
from holdfast_common.units import MIB
from holdfast_common.wire import session_pb2
from holdfast_common.wire_codec.values import error_to_message
from holdfast_controller.runs.agent_link import ConnectedAgent
from holdfast_controller.service.call_errors import Context, abort_with

log = logging.getLogger(__name__)

QUEUE_MESSAGES_MAX: Final = 1000  # an agent that takes none of so many is not alive
TASKS_MAX: Final = 200  # commits and results in work for one agent
RESULT_BYTES_MAX: Final = 64 * MIB  # some twenty thousand points
GOODBYE_SECONDS: Final = 1.0


class LiveSession:
    """A session after its hello. ``epoch``: higher is newer, for ever."""

    def __init__(
        self, *, agent: ConnectedAgent, peer: Peer, epoch: int, context: Context, now: float
    ) -> None:
        self.agent = agent
        self.peer = peer
        self.epoch = epoch
        self.last_heard_at = now
        self._context = context
        self._outgoing: asyncio.Queue[session_pb2.ToAgent] = asyncio.Queue(QUEUE_MESSAGES_MAX)
        self._end: asyncio.Future[HoldfastError] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._parts: session_pb2.JobFinished | None = None
        self._parts_bytes = 0

    @property
    def agent_id(self) -> AgentId:
        """Whose session it is."""
        return self.agent.agent_id

    def post(self, message: session_pb2.ToAgent) -> None:
        """Queue a message; a session that takes none ends."""
        try:
            self._outgoing.put_nowait(message)
        except asyncio.QueueFull:
            self.end(Interrupted("the agent does not take its messages"))

    def end(self, error: HoldfastError) -> None:
        """End the stream, with a goodbye that says why; the first reason counts."""
        if not self._end.done():
            self._end.set_result(error)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that waits, beside the stream. It goes on when the stream ends."""
        if len(self._tasks) >= TASKS_MAX:
            work.close()
            self.end(Refused("the agent asks too much at once"))
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def whole_result(self, part: session_pb2.JobFinished) -> session_pb2.JobFinished | None:
        """The result when its last part has come; None: more follows. Raises: UsageError."""
        if self._parts is not None and self._parts.attempt != part.attempt:
            raise UsageError("parts of two results came mixed")
        if self._parts is None:
            self._parts = session_pb2.JobFinished(attempt=part.attempt)
            self._parts_bytes = 0
        self._parts_bytes += part.ByteSize()
        if self._parts_bytes > RESULT_BYTES_MAX:
            raise UsageError("a job's result is too long", length=self._parts_bytes)
        self._parts.MergeFrom(part)
        if part.more:
            return None
        whole, self._parts = self._parts, None
        return whole

    async def run(self, received: Callable[[session_pb2.FromAgent], None]) -> None:
        """Carry messages until either side ends it. ``received`` may raise errors of ours."""
        reader = asyncio.create_task(self._read(received))
        writer = asyncio.create_task(self._write())
        try:
            waited: set[asyncio.Future[Any]] = {reader, writer, self._end}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
        if self._end.done():
            error = self._end.result()
            log.warning(
                "session is ended", extra={"agent_id": self.agent_id, "error": error.line()}
            )
            with contextlib.suppress(TimeoutError, grpc.RpcError, asyncio.InvalidStateError):
                goodbye = session_pb2.Goodbye(error=error_to_message(ErrorReport.of(error)))
                await asyncio.wait_for(
                    self._context.write(session_pb2.ToAgent(goodbye=goodbye)), GOODBYE_SECONDS
                )
            await abort_with(self._context, error)

    async def _read(self, received: Callable[[session_pb2.FromAgent], None]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            message = await self._context.read()
            if message is grpc.aio.EOF:
                return
            if self._end.done():
                return
            self.last_heard_at = loop.time()
            try:
                received(message)
            except HoldfastError as error:
                self.end(error)
                return

    async def _write(self) -> None:
        while True:
            await self._context.write(await self._outgoing.get())

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, HoldfastError):  # e.g. the database; what matters is said again
            log.warning(
                "something of an agent's session failed",
                extra={"agent_id": self.agent_id, "error": error.line()},
            )
        elif error is not None:
            log.error(
                "a bug in an agent's session",
                extra={"agent_id": self.agent_id},
                exc_info=error,
            )
