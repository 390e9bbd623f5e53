"""The kinds of job that are cut off, and what must hold for each of them afterwards."""

from __future__ import annotations

from support.killing import Job, KillRig


class Scenario:
    """One kind of job at one VM, by one transport."""

    family: str
    transport: str
    vm: str
    exchanged = ""  # the VM whose disks may be the restored ones afterwards
    restored = ""  # the VM that may be there afterwards

    @property
    def name(self) -> str:
        return f"{self.family}, {self.transport}"

    def prepare(self, rig: KillRig) -> None:
        """Before each job."""

    def start(self, rig: KillRig) -> str:
        """Start the job; its run's id."""
        raise NotImplementedError

    def after(self, rig: KillRig, job: Job) -> None:
        """What must hold for a job that was cut off; then what it may leave is cleared away."""

    def next_run(self, rig: KillRig) -> None:
        """The next job succeeds, and is right by the lab's ground truth."""
        raise NotImplementedError


class BackUp(Scenario):
    """Done exactly when its point is committed; the next one is right, whatever it builds on."""

    family = "backup"

    def __init__(self, vm: str, transport: str) -> None:
        self.vm = vm
        self.transport = transport

    def prepare(self, rig: KillRig) -> None:
        rig.write_as_guest(self.vm)

    def start(self, rig: KillRig) -> str:
        return rig.start_backup(self.vm, transport=self.transport)

    def after(self, rig: KillRig, job: Job) -> None:
        assert (job.state in ("done", "partial")) == rig.is_committed(job), job

    def next_run(self, rig: KillRig) -> None:
        mark = rig.write_as_guest(self.vm)
        job = rig.done(rig.start_backup(self.vm, transport=self.transport))
        rig.check_point(job.point_id, vm=self.vm, at=mark)


class _Restore(Scenario):
    def __init__(self, vm: str, transport: str) -> None:
        self.vm = vm
        self.transport = transport
        self.mark = ""
        self.point = ""

    def prepare(self, rig: KillRig) -> None:
        if not self.point:
            self.mark = rig.write_as_guest(self.vm)
            self.point = rig.done(rig.start_backup(self.vm, transport="")).point_id


class RestoreNew(_Restore):
    """Done exactly when the VM is there, whole; otherwise nothing of it is."""

    family = "new VM"

    def __init__(self, vm: str, transport: str) -> None:
        super().__init__(vm, transport)
        self.restored = f"{vm}-restored"

    def prepare(self, rig: KillRig) -> None:
        super().prepare(rig)
        if rig.look().by_name(self.restored) is not None:  # of a kill that failed its test
            rig.remove_vm(self.restored)

    def start(self, rig: KillRig) -> str:
        return rig.start_restore(self.point, transport=self.transport, name=self.restored)

    def after(self, rig: KillRig, job: Job) -> None:
        there = rig.look().by_name(self.restored) is not None
        assert (job.state in ("done", "partial")) == there, (job, there)
        if there:
            self._check_and_remove(rig)

    def next_run(self, rig: KillRig) -> None:
        rig.done(self.start(rig))
        self._check_and_remove(rig)

    def _check_and_remove(self, rig: KillRig) -> None:
        assert rig.is_equal(self.restored, original=self.vm, at=self.mark)
        rig.remove_vm(self.restored)


class RestoreInPlace(_Restore):
    """Done exactly when the VM has its restored disks; otherwise it has its old ones, whole."""

    family = "in place"

    def __init__(self, vm: str, transport: str) -> None:
        super().__init__(vm, transport)
        self.exchanged = vm
        self.before = ""

    def prepare(self, rig: KillRig) -> None:
        super().prepare(rig)
        self.before = rig.write_as_guest(self.vm)

    def start(self, rig: KillRig) -> str:
        return rig.start_restore(self.point, transport=self.transport, in_place=True)

    def after(self, rig: KillRig, job: Job) -> None:
        state = self.mark if job.state in ("done", "partial") else self.before
        assert rig.is_equal(self.vm, original=self.vm, at=state), (job, state)

    def next_run(self, rig: KillRig) -> None:
        rig.write_as_guest(self.vm)
        rig.done(self.start(rig))
        assert rig.is_equal(self.vm, original=self.vm, at=self.mark)


def all_scenarios() -> list[Scenario]:
    """Of each family the first one has every step; the others add what their transport adds."""
    return [
        BackUp("web", "direct"),
        BackUp("db", "hotadd"),
        BackUp("web", "nfc"),
        RestoreNew("web", "direct"),
        RestoreNew("db", "hotadd"),
        RestoreNew("web", "nfc"),
        RestoreInPlace("app", "direct"),
        RestoreInPlace("vault", "hotadd"),
        RestoreInPlace("vault", "nfc"),
    ]
