"""The main job, end to end, with the installed programs only: a lab vSphere, a controller, a proxy agent.

Full backups, the guests write, incrementals, restores to a new name, in place and to a file; everything
restored is compared with the lab's own ground truth. KEEP=1 leaves it all standing; SABOTAGE=1 lets the lab
flip one restored byte, which must be found and named.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

READY_SECONDS = 30
INTEGRITY_EXIT = 13
PORTS = range(9442, 9642)  # beside the usual ones of a controller on this machine
EXPECTED_COMPARISONS = 5  # web and both disks of db anew, web in place, web's disk as a file


class DemoFailed(Exception):
    """A step did not do what it must."""


@dataclass
class Demo:
    """The folders, the programs that run, and how commands are called."""

    folder: Path
    environment: dict[str, str]
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *command: str, ready: Path | None = None) -> None:
        """Start a program in the background; wait until its ready file is there, when it has one."""
        print(f"$ {shlex.join(command)} &", flush=True)
        log = (self.folder / f"{command[0]}-{len(self.programs)}.log").open("wb")
        program = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        self.programs.append(program)
        until = time.monotonic() + READY_SECONDS
        while ready is not None and not ready.exists():
            if program.poll() is not None or time.monotonic() > until:
                print(Path(log.name).read_text(errors="replace")[-4000:], file=sys.stderr)
                raise DemoFailed(f"{command[0]} did not become ready")
            time.sleep(0.05)

    def run(self, *command: str, expect: int = 0, quiet: bool = False, silent: bool = False) -> str:
        """Run a command, echo it with its exit code; its stdout. Fails on another exit code."""
        if not silent:
            print(f"$ {shlex.join(command)}", flush=True)
        done = subprocess.run(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            # for people in the order it was written; for parsing by itself
            stderr=subprocess.PIPE if quiet or silent else subprocess.STDOUT,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        shown = "" if quiet or silent else done.stdout
        for line in (shown + (done.stderr or "")).splitlines():
            print(f"  {line}")
        if not silent:
            print(f"  [exit {done.returncode}]", flush=True)
        if done.returncode != expect:
            if quiet:
                print(done.stdout, file=sys.stderr)
            raise DemoFailed(f"{shlex.join(command)} ended with {done.returncode}, not {expect}")
        return done.stdout

    def answer(self, *command: str, silent: bool = False) -> dict[str, object]:
        """The last JSON document that a command prints with --json."""
        lines = self.run(*command, "--json", quiet=True, silent=silent).strip().splitlines()
        found: dict[str, object] = json.loads(lines[-1])
        return found

    def stop(self) -> None:
        """End the programs, last started first."""
        for program in reversed(self.programs):
            if program.poll() is None:
                program.send_signal(signal.SIGTERM)
        for program in reversed(self.programs):
            try:
                program.wait(20)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


@dataclass
class Story:
    """What the demo remembers from step to step."""

    lab: dict[str, object]
    lab_state: str
    restores: Path
    figures: list[str] = field(default_factory=list)
    compared: int = 0


def main() -> int:
    """Run everything; 0 when every step did what it must."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    environment = dict(os.environ, HOLDFAST_HOME=str(folder / "home"), NO_COLOR="1")
    demo = Demo(folder, environment)
    started = time.monotonic()
    keep = os.environ.get("KEEP", "") not in ("", "0")
    sabotage = os.environ.get("SABOTAGE", "") not in ("", "0")
    try:
        story = set_up(demo)
        full_backups(demo, story)
        incrementals(demo, story)
        if sabotage:
            sabotaged_restore(demo, story)
            return 1
        restores(demo, story)
        leftovers(demo, story)
    except (DemoFailed, subprocess.TimeoutExpired) as error:
        print(f"demo FAILED: {error}", file=sys.stderr)
        for log in sorted(folder.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}", file=sys.stderr)
        return 1
    finally:
        if keep:
            pids = " ".join(str(program.pid) for program in demo.programs)
            print(f"left standing: HOLDFAST_HOME={folder / 'home'}, the lab in {folder / 'lab'}")
            print(f"end it with: kill {pids}; rm -r {folder}")
        else:
            demo.stop()
            shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - started
    print(f"demo ok: {', '.join(story.figures)}; {seconds:.1f} s", flush=True)
    return 0


def set_up(demo: Demo) -> Story:
    """The lab, the controller, the vCenter, the proxy."""
    lab_state = str(demo.folder / "lab")
    demo.start(
        "holdfast-lab", "run", "--state", lab_state,
        "--ready-file", str(demo.folder / "lab.ready"), ready=demo.folder / "lab.ready",
    )  # fmt: skip
    lab: dict[str, object] = json.loads((demo.folder / "lab" / "lab.json").read_text())
    repository = demo.folder / "repository"
    # lasting ones: with KEEP=1 the controller may be started again, and its agent finds it
    session_port, enrolment_port = free_ports(2)
    demo.run(
        "holdfast", "init", "--repository", str(repository), "--session-address",
        f"127.0.0.1:{session_port}", "--enrolment-address", f"127.0.0.1:{enrolment_port}",
        "--recovery-sheet",
        str(demo.folder / "recovery-sheet.txt"), "--accept-recovery-sheet",
    )  # fmt: skip
    ready = demo.folder / "controller.ready"
    demo.start("holdfast", "controller", "run", "--ready-file", str(ready), ready=ready)
    password = demo.folder / "password"
    password.write_text(str(lab["password"]) + "\n")
    demo.run(
        "holdfast", "vcenter", "add", str(lab["url"]), "--name", "lab", "--user",
        str(lab["user"]), "--password-file", str(password), "--certificate-sha256",
        str(lab["certificate_sha256"]),
    )  # fmt: skip
    restores = demo.folder / "restores"
    restores.mkdir()
    add_proxy(demo, lab, lab_state, repository, restores, session_port=session_port)
    demo.run("holdfast", "inventory", "list")
    demo.run("holdfast", "doctor")
    return Story(lab=lab, lab_state=lab_state, restores=restores)


def free_ports(count: int) -> list[int]:
    """Ports at which nothing listens, below those that outgoing connections take."""
    found: list[int] = []
    first = os.getpid() % len(PORTS)  # demos that begin at once look at different ones
    for port in [*PORTS[first:], *PORTS[:first]]:
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == count:
            return found
    raise DemoFailed("no free ports")


def add_proxy(
    demo: Demo,
    lab: dict[str, object],
    lab_state: str,
    repository: Path,
    restores: Path,
    *,
    session_port: int,
) -> None:
    """Enrol the agent and start it. The NFS datastores are mounted on it; it is the VM `proxy`."""
    host_name = socket.gethostname().lower()
    token = demo.run("holdfast", "agent", "token", "--host-name", host_name, quiet=True).strip()
    repository_id = json.loads(demo.run("holdfast", "status", "--json", quiet=True))[
        "repository_id"
    ]
    machines = json.loads(
        demo.run("holdfast-lab", "vm", "list", "--state", lab_state, "--json", quiet=True)
    )
    proxy = next(machine for machine in machines if machine["name"] == "proxy")
    datastores = lab["datastores"]
    assert isinstance(datastores, dict)
    mounted = [
        f"--datastore={store['url']}={store['path']}"
        for store in datastores.values()
        if store["kind"] == "NFS"
    ]
    token_file = demo.folder / "token"
    token_file.write_text(token)
    demo.run(
        "holdfast-agent", "enrol", "--token-file", str(token_file), "--controller",
        f"127.0.0.1:{session_port}", "--host-name", host_name, "--repository",
        f"{repository_id}={repository}", *mounted, "--vm-bios-uuid", proxy["bios_uuid"],
        "--device-folder", f"{lab['devices']}/proxy", "--restore-folder", str(restores),
    )  # fmt: skip
    demo.start("holdfast-agent", "run")
    until = time.monotonic() + READY_SECONDS
    while not _connected(demo):
        if time.monotonic() > until:
            raise DemoFailed("the agent did not connect")
        time.sleep(0.2)


def _connected(demo: Demo) -> bool:
    agents = demo.answer("holdfast", "agent", "list", silent=True)["agents"]
    return any(agent["state"] == "connected" for agent in agents)  # type: ignore[attr-defined]  # JSON


def full_backups(demo: Demo, story: Story) -> None:
    """The first point of each VM."""
    for name in ("web", "db"):
        demo.run("holdfast-lab", "mark", name, "day0", "--state", story.lab_state, quiet=True)
    demo.run("holdfast", "backup", "web", "db", "--level", "full")


def incrementals(demo: Demo, story: Story) -> None:
    """The guests write; what is read is what changed."""
    for name, seed in (("web", "1"), ("db", "2")):
        demo.run(
            "holdfast-lab", "guest-write", name, "--count", "12", "--seed", seed, "--state",
            story.lab_state, quiet=True,
        )  # fmt: skip
        demo.run("holdfast-lab", "mark", name, "day1", "--state", story.lab_state, quiet=True)
    demo.run("holdfast", "backup", "web", "db")
    points = json.loads(demo.run("holdfast", "point", "list", "--json", quiet=True))["points"]
    for name in ("web", "db"):
        point = newest(points, name)
        read, changed = int(point["read_bytes"]), int(point["changed_bytes"])
        if point["level"] != "incremental" or read >= int(point["capacity_bytes"]) // 4:
            raise DemoFailed(f"the second backup of {name} is no real incremental: {point}")
        story.figures.append(f"{name} read {read >> 10} KiB, changed {changed >> 10} KiB")
    demo.run("holdfast", "point", "list")


def newest(points: list[dict[str, object]], name: str) -> dict[str, object]:
    """The newest point of a VM; they are listed newest first."""
    return next(point for point in points if point["vm"] == name)


def point_of(demo: Demo, name: str) -> str:
    """Its id."""
    points = json.loads(demo.run("holdfast", "point", "list", "--json", quiet=True))["points"]
    return str(newest(points, name)["point_id"])


def restores(demo: Demo, story: Story) -> None:
    """To new names, in place, and to a file; each compared with the lab's ground truth."""
    web, db = point_of(demo, "web"), point_of(demo, "db")
    demo.run("holdfast", "restore", web, "vm", "--name", "web-restored")
    demo.run("holdfast", "restore", db, "vm", "--name", "db-restored")
    compare(demo, story, "web-restored", original="web", at="day1")
    compare(demo, story, "db-restored", original="db", at="day1")
    demo.run(
        "holdfast-lab", "guest-write", "web", "--count", "20", "--seed", "9", "--state",
        story.lab_state, quiet=True,
    )  # fmt: skip
    demo.run("holdfast-lab", "vm", "power", "web", "off", "--state", story.lab_state, quiet=True)
    demo.run("holdfast", "restore", web, "vm", "--in-place", "--yes")
    compare(demo, story, "web", original="web", at="day1")
    target = story.restores / "web-disk.vmdk"
    demo.run("holdfast", "restore", web, "disk", "0", "--to", str(target), "--format", "flat")
    found = demo.run(
        "holdfast-lab", "compare", "web", "--file", str(target).replace(".vmdk", "-flat.vmdk"),
        "--at", "day1", "--state", story.lab_state,
    )  # fmt: skip
    story.compared += found.count("equal to")
    demo.run("holdfast", "check", "--read-data")
    if story.compared != EXPECTED_COMPARISONS:
        raise DemoFailed(
            f"{story.compared} restored disks were compared, not {EXPECTED_COMPARISONS}"
        )
    story.figures.append(f"{story.compared} restored disks equal the ground truth")


def compare(demo: Demo, story: Story, name: str, *, original: str, at: str) -> None:
    """Each disk of a restored VM against what the original's guest had written by then."""
    found = demo.run(
        "holdfast-lab",
        "compare",
        name,
        "--original",
        original,
        "--at",
        at,
        "--state",
        story.lab_state,
    )
    story.compared += sum(1 for line in found.splitlines() if "equal to" in line)


def sabotaged_restore(demo: Demo, story: Story) -> None:
    """The lab changes one byte after the write was acknowledged: the restore must find it."""
    web = point_of(demo, "web")
    demo.run(
        "holdfast-lab", "misbehave", "arm", "flip_byte", "--state", story.lab_state, quiet=True
    )
    found = demo.run(
        "holdfast", "restore", web, "vm", "--name", "web-sabotaged", expect=INTEGRITY_EXIT
    )
    if "offset" not in found:
        raise DemoFailed("the restore failed, but did not name disk and offset")
    print("demo sabotaged: the restore found the flipped byte and failed, as it must")


def leftovers(demo: Demo, story: Story) -> None:
    """The user's snapshot stands, ours are gone, nothing is attached to the proxy."""
    ours = []
    for name in ("web", "db"):
        found = demo.run(
            "holdfast-lab", "snapshots", name, "--state", story.lab_state, "--json", quiet=True
        )
        names = [each["name"] for each in json.loads(found)]
        ours += [each for each in names if each != "before upgrade"]
        if name == "db" and "before upgrade" not in names:
            raise DemoFailed("the user's own snapshot is gone")
    attached = json.loads(
        demo.run("holdfast-lab", "attached", "--state", story.lab_state, "--json", quiet=True)
    )
    on_proxy = [each for each in attached if each.get("vm") == "proxy"]
    if ours or on_proxy:
        raise DemoFailed(f"left behind: snapshots {ours}, attached disks {on_proxy}")
    demo.run("holdfast", "status")
    story.figures.append("the user's snapshot stands, none of ours is left")


if __name__ == "__main__":
    sys.exit(main())
