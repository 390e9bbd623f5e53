"""An agent as a process of its own, to be killed: `python agent_program.py HOME FOLDER`.

Its one job appends a line to FOLDER/began, then waits for FOLDER/go, checking its lease. With
FOLDER/commit present it asks for a commit first, and notes the grant in FOLDER/granted.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from holdfast_agent.daemon import AgentDaemon
from holdfast_agent.pipelines.context import JobContext
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import CheckRepository, JobSpec
from holdfast_common.places import find_places
from support.session_rig import FAST_AGENT


def main(home: str, folder: Path) -> None:
    def pipeline(_spec: JobSpec, context: JobContext) -> JobResult:
        with (folder / "began").open("a") as began:
            began.write(f"{context.attempt.job_id} {context.attempt.number}\n")
        pause = threading.Event()
        while not (folder / "go").exists():
            context.check()
            pause.wait(0.02)
        return JobResult(outcome=Outcome.DONE, record=b"from the first life")

    AgentDaemon(
        find_places({"HOLDFAST_HOME": home}),
        pipelines=lambda: {CheckRepository: pipeline},
        stop=threading.Event(),
        timing=FAST_AGENT,
    ).run()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
