"""The first part of a qualification, one job: two snapshots of the VM, and what vSphere tells about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from holdfast_common.errors import (
    ChangesUnknown,
    DiskMoved,
    HoldfastError,
    Refused,
    SourceFailed,
    SourceGone,
)
from holdfast_common.job_result import JobResult, Outcome
from holdfast_controller.decide.behaviours import Behaviour, Finding, Verdict
from holdfast_controller.decide.privileges import NEEDED_RIGHTS, RightOn
from holdfast_controller.facts import DiskFacts, SnapshotFacts, VmFacts
from holdfast_controller.runs.world import World
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.vsphere import change_tracking, preflight
from holdfast_controller.vsphere.account_rights import lacking
from holdfast_controller.vsphere.changed_areas import EVERYTHING_ALLOCATED, query_areas
from holdfast_controller.vsphere.inventory import find_moref, read_vm
from holdfast_controller.vsphere.quiesce import CRASH, FILESYSTEM
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.snapshot import ConsistencyWish, temporary_snapshot
from holdfast_controller.vsphere.still_frozen import check_still_frozen

NEVER_WAS: Final = "52 00 00 00 00 00 00 00-00 00 00 00 00 00 00 00/1"
SNAPSHOT_SECONDS_MAX: Final = 60.0  # a guest may be stunned for a part of it
CONSOLIDATE: Final = "ConsolidateVMDisks_Task"
QUERY: Final = "QueryChangedDiskAreas"
Told = Callable[[Behaviour, Verdict, str], None]


class Probes:
    """The work of such a job: callable with its row. ``tried`` fills while it works; what fails is in it."""

    def __init__(self, world: World, known: KnownVm) -> None:
        self._world = world
        self._known = known
        self.tried: list[Finding] = []
        self._tracked = True  # change ids can be expected
        self._moved = False

    def __call__(self, job: JobRow) -> JobResult:
        """Raises: nothing that is a finding; what vSphere makes impossible ends the probes early."""
        world = self._world
        session = world.vcenters.session(self._known.vcenter_id)
        moref = find_moref(session, instance_uuid=self._known.vm.instance_uuid)
        self._rights(session, moref)
        found = preflight.examine(session, moref, floor=world.configuration.datastores)
        if found.refusals:
            self._tell(Behaviour.SNAPSHOT_ALLOWED, Verdict.BROKEN, "; ".join(found.refusals))
            return JobResult(outcome=Outcome.DONE)
        self._tell(Behaviour.SNAPSHOT_ALLOWED, Verdict.HOLDS, "")
        self._tracking(session, found.vm)
        ids: Mapping[int, str] = {}
        for wanted in (CRASH, FILESYSTEM):
            world.lifecycle.check(job.job_id)
            before = read_vm(session, moref)
            with self._watched(session, before, job, wanted) as snapshot:
                if snapshot is None:
                    return JobResult(outcome=Outcome.DONE)
                ids = self._look(session, snapshot, since=ids)
        return JobResult(outcome=Outcome.DONE)

    def _tell(self, behaviour: Behaviour, verdict: Verdict, detail: str) -> None:
        self.tried.append(Finding(behaviour=behaviour, verdict=verdict, detail=detail))

    def _rights(self, session: VsphereSession, moref: str) -> None:
        wanted = [right.privilege for right in NEEDED_RIGHTS if right.on is RightOn.VM]
        try:
            found = lacking(session, RightOn.VM, [moref], wanted)
        except HoldfastError as error:
            self._tell(Behaviour.RIGHTS, Verdict.UNSEEN, str(error))
            return
        if found:
            self._tell(Behaviour.RIGHTS, Verdict.BROKEN, f"it lacks {', '.join(sorted(found))}")
        else:
            self._tell(Behaviour.RIGHTS, Verdict.HOLDS, "those on the VM were asked for")

    def _tracking(self, session: VsphereSession, vm: VmFacts) -> None:
        try:
            switched = change_tracking.ensure_enabled(session, vm)
            shown = change_tracking.is_enabled(session, vm.moref)
        except HoldfastError as error:
            self._tell(Behaviour.TRACKING_ON, Verdict.BROKEN, str(error))
            self._tracked = False
            return
        detail = "it was switched on now" if switched else "it was on before"
        verdict = Verdict.HOLDS if shown else Verdict.BROKEN
        self._tell(Behaviour.TRACKING_ON, verdict, detail if shown else "the flag stays off")

    @contextmanager
    def _watched(
        self, session: VsphereSession, before: VmFacts, job: JobRow, wanted: str
    ) -> Iterator[SnapshotFacts | None]:
        """A snapshot with its time, and what is left when it has gone; None when it could not be made."""
        world, clock = self._world, self._world.clock
        wish = ConsistencyWish(asked=wanted, lower_allowed=True)
        consolidated = session.troubles.calls[CONSOLIDATE]
        started = clock.monotonic_seconds()
        made = False
        try:
            with temporary_snapshot(session, world.job_ledger(job), vm=before, wish=wish) as taken:
                made = True
                self._in_time("made", clock.monotonic_seconds() - started)
                self._tell(
                    Behaviour.SNAPSHOT_FREEZES, Verdict.HOLDS, f"{len(taken.protected_disks)} disks"
                )
                if wanted == FILESYSTEM:
                    self._quiesced(before, taken)
                yield taken
                self._stayed(session, taken)
                started = clock.monotonic_seconds()
            self._in_time("removed", clock.monotonic_seconds() - started)
        except (SourceGone, Refused):
            raise
        except HoldfastError as error:
            if made:
                raise
            self._tell(Behaviour.SNAPSHOT_FREEZES, Verdict.BROKEN, error.line())
            yield None
            return
        self._gone(session, before, consolidated)

    def _in_time(self, what: str, seconds: float) -> None:
        late = seconds > SNAPSHOT_SECONDS_MAX
        self._tell(
            Behaviour.IN_TIME,
            Verdict.HANDLED if late else Verdict.HOLDS,
            f"a snapshot was {what} in {seconds:.1f} s",
        )

    def _quiesced(self, before: VmFacts, taken: SnapshotFacts) -> None:
        if before.power_state != "poweredOn" or before.tools_running != "guestToolsRunning":
            detail = "the VM is not running, or VMware Tools are not"
            self._tell(Behaviour.QUIESCED, Verdict.UNSEEN, detail)
            return
        reached = taken.reached == FILESYSTEM
        verdict = Verdict.HOLDS if reached else Verdict.BROKEN
        self._tell(Behaviour.QUIESCED, verdict, taken.evidence)

    def _stayed(self, session: VsphereSession, taken: SnapshotFacts) -> None:
        try:
            check_still_frozen(session, taken)
        except (DiskMoved, SourceFailed) as error:
            self._tell(Behaviour.DISKS_STAY, Verdict.BROKEN, error.line())
            self._moved = True
        else:
            self._tell(Behaviour.DISKS_STAY, Verdict.HOLDS, "")

    def _gone(self, session: VsphereSession, before: VmFacts, consolidated: int) -> None:
        now = read_vm(session, before.moref)
        left = {node.moref for node in now.snapshots} - {node.moref for node in before.snapshots}
        times = session.troubles.calls[CONSOLIDATE] - consolidated
        if left or now.consolidation_needed:
            detail = "a snapshot of ours is left" if left else "a consolidation is pending"
            self._tell(Behaviour.SNAPSHOT_GOES, Verdict.BROKEN, detail)
        elif times:
            detail = f"its removal left disks behind, which {times} consolidations merged"
            self._tell(Behaviour.SNAPSHOT_GOES, Verdict.HANDLED, detail)
        else:
            self._tell(Behaviour.SNAPSHOT_GOES, Verdict.HOLDS, "")

    def _look(
        self, session: VsphereSession, snapshot: SnapshotFacts, *, since: Mapping[int, str]
    ) -> Mapping[int, str]:
        """What is told of its disks; their change ids."""
        disks = snapshot.protected_disks
        if not self._tracked or self._moved:
            return {}  # told already; what follows from it proves nothing
        without = [disk.label for disk in disks if not disk.change_id]
        if without:
            self._tell(Behaviour.CHANGE_IDS, Verdict.BROKEN, f"none on {', '.join(without)}")
            return {}
        self._tell(Behaviour.CHANGE_IDS, Verdict.HOLDS, f"{len(disks)} disks")
        for disk in disks:
            if since:
                earlier = since.get(disk.device_key, "")
                self._asked(session, snapshot, disk, Behaviour.CHANGES_TOLD, earlier)
                continue
            self._asked(session, snapshot, disk, Behaviour.ALLOCATED_TOLD, EVERYTHING_ALLOCATED)
            self._unknown_id(session, snapshot, disk)
        return {disk.device_key: disk.change_id for disk in disks}

    def _asked(
        self,
        session: VsphereSession,
        snapshot: SnapshotFacts,
        disk: DiskFacts,
        behaviour: Behaviour,
        since: str,
    ) -> None:
        asked = session.troubles.calls[QUERY]
        try:
            areas = query_areas(session, snapshot, disk, since=since)
        except ChangesUnknown as error:
            self._tell(behaviour, Verdict.BROKEN, error.line())
            return
        length = sum(area.length for area in areas)
        self._tell(behaviour, Verdict.HOLDS, f"{length} of {disk.capacity_bytes} bytes")
        answers = session.troubles.calls[QUERY] - asked
        self._tell(
            Behaviour.LISTS_WHOLE,
            Verdict.HOLDS if answers == 1 else Verdict.HANDLED,
            "" if answers == 1 else f"{disk.label} took {answers} answers",
        )

    def _unknown_id(
        self, session: VsphereSession, snapshot: SnapshotFacts, disk: DiskFacts
    ) -> None:
        try:
            query_areas(session, snapshot, disk, since=NEVER_WAS)
        except ChangesUnknown:
            self._tell(Behaviour.UNKNOWN_ID_FAILS, Verdict.HOLDS, "")
        else:
            detail = f"{disk.label} answers for an id that never was"
            self._tell(Behaviour.UNKNOWN_ID_FAILS, Verdict.BROKEN, detail)
