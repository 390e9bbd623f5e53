"""A whole installation with a second proxy agent on the same repository, which can be made to stand still at a step."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.installation import FAST, READY_SECONDS, Installation
from support.killing import INVENTORY, TESTS
from support.traced_program import FOLDER_VARIABLE
from support.traced_steps import Step, TracePlan
from support.waiting import wait_until

SECOND = "proxy2"


@dataclass(frozen=True)
class TwoProxies:
    """``holdfast`` has the lab, the controller and the first proxy; ``second`` the home of the other one."""

    holdfast: Installation
    second: Installation
    plan: TracePlan

    def second_is(self, state: str) -> bool:
        agents = self.holdfast.holdfast("agent", "list", "--json").json()["agents"]
        return any((each["host_name"], each["state"]) == (SECOND, state) for each in agents)

    def stands_still_at(self, step: Step) -> None:
        """From now on; the step is its own, or the process is told by `suspend`."""
        self.plan.arm(step)

    def suspend(self) -> None:
        """The second proxy's whole process stops where it stands, as a suspended VM does."""
        wait_until(self.plan.reached, seconds=READY_SECONDS, what="the step is reached")
        os.kill(self.second.processes["agent"].pid, signal.SIGSTOP)
        self.plan.let_go()

    def wake(self) -> None:
        """It goes on in the middle of what it did."""
        os.kill(self.second.processes["agent"].pid, signal.SIGCONT)


@contextmanager
def two_proxies(folder: Path) -> Iterator[TwoProxies]:
    """Everything up; the second proxy is a traced program."""
    folder.mkdir(parents=True, exist_ok=True)
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps(INVENTORY))
    holdfast = Installation(folder, lab_arguments=("--inventory", str(inventory)))
    trace = folder / "trace"
    second = Installation(
        folder / "second",
        program_prefix={
            "holdfast-agent": [sys.executable, "-m", "support.traced_program", "holdfast-agent"]
        },
        extra_environment={FOLDER_VARIABLE: str(trace), "PYTHONPATH": str(TESTS)},
    )
    ready = TwoProxies(holdfast, second, TracePlan(trace))
    try:
        holdfast.start_lab()
        holdfast.init()
        holdfast.configure(**FAST)
        holdfast.start_controller()
        holdfast.add_vcenter()
        holdfast.enrol_agent()
        holdfast.start_agent()
        _enrol(ready)
        second.start("agent", "holdfast-agent", "run")
        wait_until(
            lambda: ready.second_is("connected"),
            seconds=READY_SECONDS,
            what="the second proxy connects",
        )
        yield ready
    finally:
        process = second.processes.get("agent")
        if process is not None and process.poll() is None:
            ready.wake()
        second.stop()
        holdfast.stop()


def _enrol(ready: TwoProxies) -> None:
    holdfast, second = ready.holdfast, ready.second
    token_file = second.folder / "token"
    token_file.write_text(holdfast.holdfast("agent", "token", "--host-name", SECOND).stdout.strip())
    repository_id = holdfast.holdfast("status", "--json").json()["repository_id"]
    second.agent(
        "enrol",
        "--token-file",
        str(token_file),
        "--controller",
        f"127.0.0.1:{holdfast.session_port}",
        "--host-name",
        SECOND,
        "--restore-folder",
        str(second.restores),
        f"--repository={repository_id}={holdfast.repository}",
        *(
            f"--datastore={store['url']}={store['path']}"
            for store in holdfast.lab_facts()["datastores"].values()
            if store["kind"] == "NFS"
        ),
    )
