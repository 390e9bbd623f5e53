"""The lab, judged by clients that know nothing of it: stock govc, and a small govmomi program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from holdfast_lab.control_client import LabClient
from referee.go_programs import Referees
from referee.verdicts import Ending, Verdict

READY_SECONDS_MAX: Final = 60.0
COMMAND_SECONDS_MAX: Final = 300
DISK_SIZE: Final = "64M"
SNAPSHOT: Final = "referee"  # what the Go program calls its own
GUEST_BLOCK_BYTES: Final = 64 * 1024


class Refused(Exception):
    """A judge found something wrong."""


@dataclass(kw_only=True)
class LabUnderTest:
    """A running lab, and what the judges said of it so far."""

    url: str
    user: str
    password: str
    control: LabClient
    folder: Path
    verdicts: list[Verdict] = field(default_factory=list)

    def judge(self, name: str, work: Callable[[], str]) -> None:
        """One verdict: ``work`` says in a word what it saw. Raises nothing."""
        try:
            said = work()
        except (Refused, AssertionError, OSError, ValueError, KeyError) as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            self.verdicts.append(Verdict(name=name, ending=Ending.FAILED, text=text))
        else:
            self.verdicts.append(Verdict(name=name, ending=Ending.PASSED, text=said))


def judge_the_lab(referees: Referees) -> list[Verdict]:
    """Every command of stock govc that a user of the lab needs, then the Go program's story."""
    with running_lab() as lab:
        if referees.govc is not None:
            Govc(referees.govc, lab).judge_all()
        for machine in ("web", "db"):
            story = partial(_client_story, referees.client, lab, machine)
            lab.judge(f"govmomi client, {machine}", story)
        return lab.verdicts


@contextmanager
def running_lab() -> Iterator[LabUnderTest]:
    """A lab of its own with the demo's inventory, run as a user runs it, until the block ends."""
    program = Path(sys.executable).with_name("holdfast-lab")
    with tempfile.TemporaryDirectory(prefix="holdfast-referee-lab-") as name:
        folder = Path(name)
        state, ready = folder / "state", folder / "ready"
        command = [str(program), "run", "--state", str(state), "--disk-size", DISK_SIZE]
        with (folder / "lab.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--ready-file", str(ready)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            _wait_for(ready, process, folder / "lab.log")
            told = json.loads((state / "lab.json").read_text(encoding="utf-8"))
            yield LabUnderTest(
                url=str(told["url"]),
                user=str(told["user"]),
                password=str(told["password"]),
                control=LabClient(state),
                folder=folder,
            )
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(ready: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    pause = threading.Event()
    for _ in range(int(READY_SECONDS_MAX / 0.05)):
        if ready.exists():
            return
        if process.poll() is not None:
            break
        pause.wait(0.05)
    raise Refused(f"the lab did not become ready: {log.read_text(errors='replace')[-1000:]}")


@dataclass
class Govc:
    """Stock govc with the lab's address in its environment."""

    program: Path
    lab: LabUnderTest

    def judge_all(self) -> None:
        """Command after command; each is judged alone."""
        judge = self.lab.judge
        judge("govc about", lambda: self.must("Vendor", "about"))
        judge("govc ls", lambda: self.must("/dc1/vm/web", "ls", "vm"))
        judge("govc find", lambda: self.must("/dc1/vm/db", "find", "/", "-type", "m"))
        judge("govc tree", lambda: self.must("web", "tree", "/"))
        judge("govc host.info", lambda: self.must("esx1.lab", "host.info", "-host", "esx1.lab"))
        judge("govc vm.info", lambda: self.must("poweredOn", "vm.info", "-json", "web"))
        judge(
            "govc device.info", lambda: self.must("web.vmdk", "device.info", "-vm", "web", "disk-*")
        )
        judge("govc datastore.info", lambda: self.must("vmfs1", "datastore.info"))
        judge("govc datastore.ls", lambda: self.must("web.vmdk", *self._in("nfs1", "ls"), "web"))
        judge("govc datastore.download", self._download)
        judge("govc datastore.upload", self._upload)
        judge(
            "govc snapshot.create", lambda: self.must("", "snapshot.create", "-vm", "web", "stock")
        )
        judge("govc snapshot.tree", lambda: self.must("stock", "snapshot.tree", "-vm", "web"))
        judge(
            "govc snapshot.revert", lambda: self.must("", "snapshot.revert", "-vm", "web", "stock")
        )
        judge(
            "govc snapshot.remove", lambda: self.must("", "snapshot.remove", "-vm", "web", "stock")
        )
        judge("govc vm.power -off", lambda: self.must("OK", "vm.power", "-off", "web"))
        judge("govc vm.change", lambda: self.must("", "vm.change", "-vm", "web", "-m", "1024"))
        judge("govc export.ovf", self._export)
        judge("govc import.ovf", self._import)
        judge("govc vm.power -on", lambda: self.must("OK", "vm.power", "-on", "web"))
        judge("govc vm.unregister, vm.register", self._register)
        judge("govc vm.destroy", lambda: self.must("", "vm.destroy", "imported"))
        judge("govc tags.category.*", self._categories)
        judge("govc tags.create, tags.attach, tags.attached.ls", self._tags)
        judge("govc tags.update, tags.detach, tags.rm", self._tags_off)

    def run(self, *arguments: str) -> str:
        """One command's output. Raises: Refused."""
        lab = self.lab
        environment = {
            **os.environ,
            "GOVC_URL": lab.url,
            "GOVC_USERNAME": lab.user,
            "GOVC_PASSWORD": lab.password,
            "GOVC_INSECURE": "1",
            "GOVC_PERSIST_SESSION": "false",
            "HOME": str(lab.folder),
        }
        done = _finished([str(self.program), *arguments], environment=environment)
        if done.returncode != 0:
            raise Refused(f"exit {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def must(self, contain: str, *arguments: str) -> str:
        """A command that must say something. Raises: Refused."""
        said = self.run(*arguments)
        if contain not in said:
            raise Refused(f"{contain!r} is not in: {said[:300]}")
        return ""

    def _in(self, datastore: str, verb: str) -> tuple[str, ...]:
        return (f"datastore.{verb}", "-ds", datastore)

    def _download(self) -> str:
        target = self.lab.folder / "web.vmx"
        self.run(*self._in("nfs1", "download"), "web/web.vmx", str(target))
        if b"displayName" not in target.read_bytes():
            raise Refused("the downloaded .vmx is none")
        return ""

    def _upload(self) -> str:
        source, back = self.lab.folder / "note", self.lab.folder / "note.back"
        source.write_bytes(b"refereed" * 1000)
        self.run(*self._in("nfs1", "upload"), str(source), "note")
        self.run(*self._in("nfs1", "download"), "note", str(back))
        self.run(*self._in("nfs1", "rm"), "note")
        if back.read_bytes() != source.read_bytes():
            raise Refused("what was uploaded came back otherwise")
        return ""

    def _export(self) -> str:
        """A powered-off VM as an OVF; its disk is the guest's, by qemu-img."""
        folder = self.lab.folder / "export"
        self.run("export.ovf", "-vm", "web", str(folder))
        disks = sorted(folder.rglob("*.vmdk"))
        if not disks or not list(folder.rglob("*.ovf")):
            raise Refused(f"not exported whole: {[each.name for each in folder.rglob('*')]}")
        truth = self.lab.folder / "export.raw"
        self.lab.control.call("truth", vm="web", disk=0, to=str(truth))
        return _equal(disks[0], truth)

    def _import(self) -> str:
        """The export as a new VM; the lab compares its disk with what the guest wrote."""
        ovf = next((self.lab.folder / "export").rglob("*.ovf"))
        pool = self.run("find", "/", "-type", "p").splitlines()[0]
        self.run("import.ovf", "-ds", "nfs1", "-pool", pool, "-name", "imported", str(ovf))
        found = self.lab.control.call("compare", vm="imported", original="web")
        if not found["equal"]:
            raise Refused(f"the imported disk differs: {found['disks']}")
        return f"equal by {', '.join(found['disks'][0]['judged_by'])}"

    def _register(self) -> str:
        self.run("vm.unregister", "imported")
        pool = self.run("find", "/", "-type", "p").splitlines()[0]
        self.run("vm.register", "-ds", "nfs1", "-pool", pool, "imported/imported.vmx")
        return self.must("imported", "find", "/", "-type", "m")

    def _categories(self) -> str:
        made = self.run("tags.category.create", "-m", "-t", "VirtualMachine", "Backup").strip()
        if not made.startswith("urn:vmomi:InventoryServiceCategory:"):
            raise Refused(f"no category's id: {made}")
        self.must("Backup", "tags.category.ls")
        self.run("tags.category.update", "-d", "what is backed up", "Backup")
        return self.must("what is backed up", "tags.category.info", "Backup")

    def _tags(self) -> str:
        """What govc attaches, the lab knows; what the lab attaches, govc sees."""
        self.run("tags.create", "-d", "every hour", "-c", "Backup", "gold")
        self.run("tags.attach", "-c", "Backup", "gold", "/dc1/vm/web")
        carriers = self.lab.control.call("tag-list")[0]["objects"]
        if carriers != ["web"]:
            raise Refused(f"the lab says that {carriers} carry it")
        self.lab.control.call("tag-attach", tag="Backup/gold", name="db")
        self.must("every hour", "tags.info", "gold")
        self.must("gold", "tags.attached.ls", "-r", "/dc1/vm/db")
        shown = self.run("tags.attached.ls", "gold").split()
        if len(shown) != 2:
            raise Refused(f"two VMs carry it, not {shown}")
        return ""

    def _tags_off(self) -> str:
        self.run("tags.update", "-n", "silver", "gold")
        self.must("silver", "tags.ls", "-c", "Backup")
        self.run("tags.detach", "-c", "Backup", "silver", "/dc1/vm/web")
        carriers = self.lab.control.call("tag-list")[0]["objects"]
        if carriers != ["db"]:
            raise Refused(f"the lab says that {carriers} carry it")
        self.run("tags.detach", "silver", "/dc1/vm/db")
        self.run("tags.rm", "-c", "Backup", "silver")
        self.run("tags.category.rm", "Backup")
        return ""


def _client_story(program: Path, lab: LabUnderTest, machine: str) -> str:
    """Snapshot, changed areas, two downloads, twice: of everything allocated, then of what changed."""
    first = _client_run(program, lab, machine, since="*")
    written = [
        tuple(area)
        for seed in (1, 2, 3)
        for area in lab.control.call("guest-write", vm=machine, disk=0, seed=seed, count=2)["areas"]
    ]
    second = _client_run(program, lab, machine, since=str(first[0]["change_id"]))
    reported = [(each["start"], each["length"]) for each in second[0]["areas"]]
    for start, length in written:
        if not _covered(start, length, reported):
            raise Refused(f"the guest wrote {length} bytes at {start}: no changed area has them")
    changed = sum(length for _, length in reported)
    if changed >= int(second[0]["capacity"]) // 2:
        raise Refused(f"{changed} bytes are said to have changed")
    return (
        f"{len(first)} disks equal over /folder and over a lease, by qemu-img;"
        f" {changed} bytes changed in {len(reported)} areas hold all {len(written)} writes"
    )


def _client_run(program: Path, lab: LabUnderTest, machine: str, *, since: str) -> list[Any]:
    """One run of the Go program; the guest writes while its snapshot stands."""
    folder = lab.folder / f"client-{machine}-{'all' if since == '*' else 'changed'}"
    folder.mkdir()
    where = urllib.parse.urlsplit(lab.url)
    login = f"{urllib.parse.quote(lab.user, safe='')}:{urllib.parse.quote(lab.password, safe='')}"
    command = [str(program), "-url", f"https://{login}@{where.netloc}/sdk", "-vm", machine]
    command += ["-since", since, "-into", str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    late = threading.Timer(COMMAND_SECONDS_MAX, process.kill)
    late.start()
    try:
        assert process.stdout is not None
        taken = process.stdout.readline()
        truths = _truths(lab, machine, folder) if taken else []
        rest, errors = process.communicate("go on\n" if taken else "")
    finally:
        late.cancel()
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise Refused(errors.strip() or f"it ended with {process.returncode}")
    disks: list[Any] = json.loads(rest)
    if len(disks) != len(truths):
        raise Refused(f"{len(disks)} disks were read, the VM has {len(truths)}")
    for disk, truth in zip(disks, truths, strict=True):
        for way in ("folder_file", "lease_file"):
            if not disk[way]:
                raise Refused(f"disk {disk['key']} has no {way}")
            _equal(Path(disk[way]), truth)
    shutil.rmtree(folder)
    return disks


def _truths(lab: LabUnderTest, machine: str, folder: Path) -> list[Path]:
    """What each disk held at the snapshot; meanwhile the guest goes on writing."""
    shown: Mapping[str, Any] = lab.control.call("vm-show", vm=machine)
    found = []
    for number in range(len(shown["disks"])):
        lab.control.call("guest-write", vm=machine, disk=number, seed=77, count=5)
        truth = folder / f"truth-{number}.raw"
        lab.control.call("truth", vm=machine, disk=number, at=SNAPSHOT, to=str(truth))
        found.append(truth)
    return found


def _covered(start: int, length: int, areas: list[tuple[int, int]]) -> bool:
    """Whether a range lies in the areas together; they ascend."""
    at = start
    for area_start, area_length in areas:
        if area_start <= at < area_start + area_length:
            at = area_start + area_length
    return at >= start + length


def _equal(disk: Path, truth: Path) -> str:
    """qemu-img's word on a VMDK against the lab's ground truth. Raises: Refused."""
    qemu_img = shutil.which("qemu-img")
    if qemu_img is None:
        raise Refused("qemu-img is not installed: apt-get install qemu-utils")
    done = _finished([qemu_img, "compare", "-f", "vmdk", "-F", "raw", str(disk), str(truth)])
    if done.returncode != 0:
        raise Refused(f"{disk.name}: {done.stdout}{done.stderr}")
    return "equal by qemu-img"


def _finished(
    command: list[str], *, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS_MAX,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise Refused(f"{Path(command[0]).name} did not end: {error}") from error
