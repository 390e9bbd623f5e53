"""A whole Holdfast for tests: the lab, a controller and a proxy agent as real processes, and the CLI."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast_common.errors import ControllerUnreachable
from holdfast_common.places import find_places
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.operator_client import operators
from holdfast_lab.control_client import LabClient
from support.forked_programs import Program, nursery
from support.waiting import wait_until

BIN = Path(sys.executable).parent
PYTHON = [sys.executable, "-m"]
HASTY = {"holdfast": [*PYTHON, "support.hasty_controller"]}  # where an agent is away for good
READY_SECONDS = 60.0
COMMAND_SECONDS = 180.0
HOST_NAME = "proxy1"
FAST = {"heartbeat_seconds": 0.5, "job_lease_seconds": 4.0, "reconcile_seconds": 1.0}


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout + self.stderr

    def json(self) -> Any:
        return json.loads(self.stdout.strip().splitlines()[-1])


def lasting_port() -> int:
    """A free port that no outgoing connection gets by chance while its server is down for a moment."""
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(max(1024, first_outgoing - 16384), first_outgoing)
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@dataclass
class Installation:
    """Folders and processes. `start` everything, then `holdfast(...)` and `lab(...)`."""

    folder: Path
    lab_arguments: tuple[str, ...] = ()
    program_prefix: dict[str, list[str]] = field(default_factory=dict)
    extra_environment: dict[str, str] = field(default_factory=dict)
    forked: bool = True  # programs start at once, see `forked_programs`
    processes: dict[str, Program] = field(default_factory=dict)
    session_port: int = 0
    repository: Path = field(init=False)
    restores: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.repository = self.folder / "repository"
        self.restores = self.folder / "restores"
        self.restores.mkdir(exist_ok=True)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def lab_state(self) -> Path:
        return self.folder / "lab"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOLDFAST_HOME": str(self.home),
            "NO_COLOR": "1",
            **self.extra_environment,
        }

    # -- programs ------------------------------------------------------------------------------

    def program(self, name: str, *arguments: str) -> list[str]:
        return [*self.program_prefix.get(name, [str(BIN / name)]), *arguments]

    def start(self, key: str, name: str, *arguments: str) -> Program:
        log = (self.folder / f"{key}.log").open("ab")
        process: Program
        if self.forked:
            prefix = self.program_prefix.get(name, [*PYTHON, name])
            assert prefix[:2] == PYTHON, "only modules can be forked"
            order = [*prefix[2:], *arguments]
            process = nursery().start(order, environment=self.environment, stdout=log, stderr=log)
        else:
            process = subprocess.Popen(
                self.program(name, *arguments),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        log.close()
        self.processes[key] = process
        return process

    def log(self, key: str) -> str:
        path = self.folder / f"{key}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def run(self, name: str, *arguments: str, seconds: float = COMMAND_SECONDS) -> Done:
        if self.forked:
            order = [name, *arguments]
            found = nursery().run(order, environment=self.environment, seconds=seconds)
            return Done(status=found.returncode, stdout=found.stdout, stderr=found.stderr)
        found = subprocess.run(
            [str(BIN / name), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        return Done(status=found.returncode, stdout=found.stdout, stderr=found.stderr)

    def holdfast(self, *arguments: str, expect: int = 0, seconds: float = COMMAND_SECONDS) -> Done:
        done = self.run("holdfast", *arguments, seconds=seconds)
        assert done.status == expect, self._told(arguments, done)
        return done

    def agent(self, *arguments: str, expect: int = 0) -> Done:
        done = self.run("holdfast-agent", *arguments)
        assert done.status == expect, self._told(arguments, done)
        return done

    def lab(self, *arguments: str, expect: int = 0) -> Any:
        done = self.run("holdfast-lab", *arguments, "--state", str(self.lab_state), "--json")
        assert done.status == expect, self._told(arguments, done)
        return json.loads(done.stdout) if done.stdout.strip() else None

    def control(self, command: str, **arguments: object) -> Any:
        """A command of the lab's control socket, without starting a program."""
        return LabClient(self.lab_state).call(command, **arguments)

    def misbehave(
        self, kind: str, match: Mapping[str, str] | None = None, **parameters: object
    ) -> None:
        self.control("misbehave", kind=kind, match=dict(match or {}), parameters=parameters or None)

    def _told(self, arguments: tuple[str, ...], done: Done) -> str:
        logs = "".join(f"\n--- {key}\n{self.log(key)[-3000:]}" for key in ("controller", "agent"))
        return f"{' '.join(arguments)} ended with {done.status}\n{done.text}{logs}"

    # -- setting up ----------------------------------------------------------------------------

    def start_lab(self) -> dict[str, Any]:
        ready = self.folder / "lab.ready"
        ready.unlink(missing_ok=True)
        self.start(
            "lab",
            "holdfast-lab",
            "run",
            "--state",
            str(self.lab_state),
            "--ready-file",
            str(ready),
            *self.lab_arguments,
        )
        self._wait_for("lab", ready)
        return self.lab_facts()

    def lab_facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.lab_state / "lab.json").read_text())
        return found

    def init(self, *arguments: str) -> Done:
        done = self.holdfast(
            "init",
            "--repository",
            str(self.repository),
            "--session-address",
            f"127.0.0.1:{lasting_port()}",
            "--enrolment-address",
            f"127.0.0.1:{lasting_port()}",
            "--accept-recovery-sheet",
            "--json",
            *arguments,
        )
        self.configure(**FAST)
        self.configure(start="")  # tasks of keeping, which would come between at eight o'clock
        return done

    def configure(self, **values: float | int | str) -> None:
        """Change ``controller.toml``; the controller reads it at its start."""
        path = self.home / "etc" / "controller.toml"
        text = path.read_text()
        for name, value in values.items():
            written = f'"{value}"' if isinstance(value, str) else str(value)
            text = re.sub(rf"(?m)^{name} = .*$", f"{name} = {written}", text)
        path.write_text(text)

    def start_controller(self) -> None:
        """Start it, always at the same ports."""
        ready = self.folder / "controller.ready"
        ready.unlink(missing_ok=True)
        self.start("controller", "holdfast", "controller", "run", "--ready-file", str(ready))
        self._wait_for("controller", ready)
        ports = json.loads(ready.read_text())
        self.session_port = ports["session"]

    def add_vcenter(self, name: str = "lab", **changes: str) -> Done:
        facts = self.lab_facts() | changes
        password = self.folder / "password"
        password.write_text(facts["password"] + "\n")
        return self.holdfast(
            "vcenter",
            "add",
            facts["url"],
            "--name",
            name,
            "--user",
            facts["user"],
            "--password-file",
            str(password),
            "--certificate-sha256",
            facts["certificate_sha256"],
        )

    def enrol_agent(self, *, direct: bool = True, hot_add: bool = True, port: int = 0) -> None:
        token = self.holdfast("agent", "token", "--host-name", HOST_NAME).stdout.strip()
        token_file = self.folder / "token"
        token_file.write_text(token)
        repository_id = self.holdfast("status", "--json").json()["repository_id"]
        facts = self.lab_facts()
        arguments = [f"--repository={repository_id}={self.repository}"]
        if direct:
            arguments += [
                f"--datastore={store['url']}={store['path']}"
                for store in facts["datastores"].values()
                if store["kind"] == "NFS"
            ]
        if hot_add:
            proxy = next(vm for vm in self.control("vm-list") if vm["name"] == "proxy")
            arguments += [
                f"--vm-bios-uuid={proxy['bios_uuid']}",
                f"--device-folder={facts['devices']}/proxy",
            ]
        self.agent(
            "enrol",
            "--token-file",
            str(token_file),
            "--controller",
            f"127.0.0.1:{port or self.session_port}",
            "--host-name",
            HOST_NAME,
            "--restore-folder",
            str(self.restores),
            *arguments,
        )

    def start_agent(self) -> None:
        self.start("agent", "holdfast-agent", "run")
        wait_until(self.agent_is_connected, seconds=READY_SECONDS, what="the agent connects")

    def agent_is_connected(self) -> bool:
        """Asked again and again, so without starting a program."""
        return any(agent.state == "connected" for agent in self.agents())

    def agents(self) -> list[operator_pb2.Agent]:
        """As the controller lists them; none while it does not answer."""
        try:
            with operators(find_places({"HOLDFAST_HOME": str(self.home)})) as client:
                return list(client.call(client.stub.ListAgents, operator_pb2.Empty()).agents)
        except ControllerUnreachable:
            return []

    def _wait_for(self, key: str, ready: Path) -> None:
        def is_ready() -> bool:
            assert self.processes[key].poll() is None, self.log(key)[-4000:]
            return ready.exists() and ready.stat().st_size > 0

        wait_until(is_ready, seconds=READY_SECONDS, what=f"{key} is ready")

    # -- stopping ------------------------------------------------------------------------------

    def kill(self, key: str, number: int = signal.SIGKILL) -> None:
        process = self.processes.pop(key)
        process.send_signal(number)
        process.wait(30)

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self.processes.clear()

    # -- what tests ask ------------------------------------------------------------------------

    def points(self, vm: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.holdfast("point", "list", "--vm", vm, "--json").json()[
            "points"
        ]
        return found

    def newest_point(self, vm: str) -> str:
        return str(self.points(vm)[0]["point_id"])

    def own_snapshots(self, vm: str, *, theirs: tuple[str, ...] = ("before upgrade",)) -> list[str]:
        found = self.control("snapshots", vm=vm)
        return [each["name"] for each in found if each["name"] not in theirs]

    def attached_to_proxy(self) -> list[Mapping[str, Any]]:
        return [each for each in self.control("attached") if each.get("vm") == "proxy"]

    def is_equal(self, vm: str, *, original: str = "", at: str = "") -> bool:
        arguments = ["compare", vm]
        arguments += ["--original", original] if original else []
        arguments += ["--at", at] if at else []
        done = self.run("holdfast-lab", *arguments, "--state", str(self.lab_state))
        assert done.status in (0, 13), done.text
        return done.status == 0

    def in_background(self, *arguments: str) -> BackgroundCommand:
        return BackgroundCommand(self, arguments)


class BackgroundCommand:
    """A CLI command that runs while the test does something else."""

    def __init__(self, installation: Installation, arguments: tuple[str, ...]) -> None:
        self._done: Done | None = None

        def work() -> None:
            self._done = installation.run("holdfast", *arguments)

        self._thread = threading.Thread(target=work)
        self._thread.start()

    def wait(self, seconds: float = COMMAND_SECONDS) -> Done:
        self._thread.join(seconds)
        assert self._done is not None, "the command did not end"
        return self._done


@contextmanager
def whole_installation(
    folder: Path,
    *,
    lab_arguments: tuple[str, ...] = (),
    vcenter: bool = True,
    program_prefix: Mapping[str, list[str]] | None = None,
) -> Iterator[Installation]:
    """Lab, controller, vCenter, agent: all up; all stopped at the end."""
    installation = Installation(
        folder, lab_arguments=lab_arguments, program_prefix=dict(program_prefix or {})
    )
    try:
        installation.start_lab()
        installation.init()
        installation.start_controller()
        if vcenter:
            installation.add_vcenter()
        installation.enrol_agent()
        installation.start_agent()
        yield installation
    finally:
        installation.stop()
