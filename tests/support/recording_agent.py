"""`holdfast-agent`, but every StartJob that comes from the wire is also written to a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from holdfast_agent import main
from holdfast_agent.session import AgentSession
from holdfast_common.wire import session_pb2

FILE_VARIABLE = "HOLDFAST_TEST_RECORDED_JOBS"

_received = AgentSession._received


def _recorded(
    self: AgentSession, runner: object, talk: object, message: session_pb2.ToAgent
) -> None:
    if message.WhichOneof("message") == "start_job":
        with Path(os.environ[FILE_VARIABLE]).open("ab") as file:
            file.write(message.SerializeToString())
    _received(self, runner, talk, message)  # type: ignore[arg-type]  # handed on as they came


if __name__ == "__main__":
    AgentSession._received = _recorded  # type: ignore[method-assign]
    sys.exit(main.run(sys.argv[1:]))
