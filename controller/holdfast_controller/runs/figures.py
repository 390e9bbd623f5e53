"""What the controller knows of itself, as numbers: gathered from the database and from memory, never from outside.

For `service.metrics`. However many VMs and points there are, a round of questions costs well below a second, and
what is counted has few kinds: VMs are counted, never named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from holdfast_common.clock import parse_utc
from holdfast_common.errors import IntegrityError
from holdfast_common.identity import LineageId
from holdfast_controller.decide.disk_choice import WantedDisks, unsaved_disks
from holdfast_controller.runs.keeping_state import keeping_failures
from holdfast_controller.runs.promises import Promises
from holdfast_controller.runs.repository_space import Space, SpaceWatch
from holdfast_controller.runs.repository_verdict import repository_verdict
from holdfast_controller.runs.verified_data import last_look
from holdfast_controller.runs.world import World, lineage_of
from holdfast_controller.store import settings as names
from holdfast_controller.store.job_figures import EndedJob, UnfinishedJobs
from holdfast_controller.store.protection import ProtectedVm

AGE_HOURS: Final = (
    1,
    4,
    12,
    26,
    50,
    74,
    170,
    722,
)  # a day, two, three, a week, a month: and two hours more


@dataclass(slots=True, kw_only=True)
class EndedTotals:
    """What jobs that ended in this life of the controller came to. Bytes by kind of job."""

    jobs: Counter[tuple[str, str]] = field(default_factory=Counter)  # kind, outcome
    warnings: Counter[str] = field(default_factory=Counter)
    read_bytes: Counter[str] = field(default_factory=Counter)
    stored_bytes: Counter[str] = field(default_factory=Counter)
    written_bytes: Counter[str] = field(default_factory=Counter)

    def add(self, job: EndedJob) -> None:
        """Count one more."""
        self.jobs[job.kind, job.state] += 1
        self.warnings[job.kind] += job.warnings
        for disk in job.disks:
            self.read_bytes[job.kind] += disk.read_bytes
            self.stored_bytes[job.kind] += disk.stored_bytes
            self.written_bytes[job.kind] += disk.written_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VmFigures:
    """``older``: by hours, how many have no good point as young as that. ``oldest_seconds`` 0.0: no VM has one."""

    vms: int
    without: int
    older: Mapping[int, int]
    oldest_seconds: float
    unprotected_bytes: int
    uncovered: int
    promised: int
    late: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DebtFigures:
    """Debts of one kind."""

    kind: str
    debts: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryFigures:
    """Times in seconds since 1970, 0.0: never. ``space`` None: not known."""

    space: Space | None
    points: int
    points_in_doubt: int
    is_damaged: bool
    pruned_at: float
    checked_at: float
    data_checked_at: float
    scrubbed_at: float
    oldest_proof_at: float
    unproven_bytes: int
    database_copied_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Everything at one moment."""

    unfinished: tuple[UnfinishedJobs, ...]
    waiting_seconds: float  # of the oldest job that has not begun; 0.0: none waits
    ended: EndedTotals
    vms: VmFigures
    debts: tuple[DebtFigures, ...]
    vms_doubted: int
    agents: Mapping[tuple[str, str], int]  # role, state
    vcenters: Mapping[str, int]  # state
    inventory_read_at: float  # of the vCenter that was read longest ago
    repository: RepositoryFigures
    keeping_problems: int
    messages_waiting: int
    messages_given_up: int


class FigureBook:
    """Gathers figures. One thread."""

    def __init__(self, world: World, space: SpaceWatch) -> None:
        self._world = world
        self._space = space
        self._promises = Promises(world)
        self._totals = EndedTotals()
        self._counted_to = world.job_figures.newest_event()
        self._unprotected: tuple[tuple[object, ...], int] = ((), 0)

    def gather(self) -> Figures:
        """All of them now. Raises: Locked, StoreFailed."""
        world, now = self._world, self._world.clock.now()
        self._count_ended()
        waiting = world.job_figures.oldest_waiting_at()
        rows = world.vcenters.table.all()
        taken = [world.vcenters.inventory.taken_at(row.vcenter_id) for row in rows]
        failing = sum(1 for row in rows if row.last_error)
        messages = world.notices.counts()
        return Figures(
            unfinished=tuple(world.job_figures.unfinished()),
            waiting_seconds=_age(waiting, now),
            ended=self._totals,
            vms=self._vm_figures(world.protection.vms(), tuple(taken), now),
            debts=self._debts(now),
            vms_doubted=len(world.protection.doubted()),
            agents=self._agents(),
            vcenters={"fine": len(rows) - failing, "failing": failing},
            inventory_read_at=min(map(_moment, taken), default=0.0),
            repository=self._repository(),
            keeping_problems=len(keeping_failures(world)),
            messages_waiting=messages.waiting,
            messages_given_up=messages.given_up,
        )

    def _count_ended(self) -> None:
        while found := self._world.job_figures.ended_after(self._counted_to):
            for job in found:
                self._totals.add(job)
            self._counted_to = found[-1].event_id

    def _vm_figures(
        self, vms: list[ProtectedVm], taken: tuple[str, ...], now: datetime
    ) -> VmFigures:
        ages = [_age(vm.last_good_at, now) if vm.last_good_at else None for vm in vms]
        known = [age for age in ages if age is not None]
        without = len(ages) - len(known)
        promised = self._promises.now()
        promises = [(vm, promised.promises.get(vm.lineage_id)) for vm in vms]
        bound = [(vm, promise) for vm, promise in promises if promise is not None]
        return VmFigures(
            vms=len(ages),
            without=without,
            older={
                hours: without + sum(1 for age in known if age > hours * 3600)
                for hours in AGE_HOURS
            },
            oldest_seconds=max(known, default=0.0),
            unprotected_bytes=self._unprotected_bytes(taken, promised.disks),
            uncovered=sum(1 for vm in vms if vm.lineage_id not in promised.covered),
            promised=len(bound),
            late=sum(1 for vm, promise in bound if promise.is_broken(vm, now)),
        )

    def _unprotected_bytes(
        self, taken: tuple[str, ...], wanted: Mapping[LineageId, tuple[WantedDisks, ...]]
    ) -> int:
        """Looked for anew only when an inventory or a policy was: all VMs have to be decoded for it."""
        seen = (taken, wanted)
        if self._unprotected[0] != seen:
            uuids = {row.vcenter_id: row.instance_uuid for row in self._world.vcenters.table.all()}
            found = 0
            for known in self._world.vcenters.inventory.vms():
                lineage_id = lineage_of(
                    vcenter_instance_uuid=uuids.get(known.vcenter_id, ""),
                    vm_instance_uuid=known.vm.instance_uuid,
                )
                unsaved = unsaved_disks(known.vm.disks, wanted.get(lineage_id, ()))
                found += sum(disk.capacity_bytes for disk in unsaved)
            self._unprotected = (seen, found)
        return self._unprotected[1]

    def _debts(self, now: datetime) -> tuple[DebtFigures, ...]:
        ages: dict[str, list[float]] = {}
        for entry in self._world.ledger.debts():
            ages.setdefault(entry.kind, []).append(_age(entry.created_at, now))
        return tuple(
            DebtFigures(kind=kind, debts=len(found), oldest_seconds=max(found))
            for kind, found in sorted(ages.items())
        )

    def _agents(self) -> dict[tuple[str, str], int]:
        connected = {agent.agent_id for agent in self._world.link.connected()}
        found: Counter[tuple[str, str]] = Counter()
        for agent in self._world.agents.all():
            state = "connected" if agent.agent_id in connected else "away"
            found[agent.role, "revoked" if agent.revoked_at else state] += 1
        return dict(found)

    def _repository(self) -> RepositoryFigures:
        world = self._world
        read_back = last_look(world)
        return RepositoryFigures(
            space=self._space.space,
            points=world.protection.points(),
            points_in_doubt=world.protection.points_in_doubt(),
            is_damaged=bool(repository_verdict(world).damage),
            pruned_at=_moment(world.prunes.last_good_at()),
            checked_at=_moment(world.job_figures.last_good_check_at()),
            data_checked_at=_moment(self._last_data_check_at()),
            scrubbed_at=_moment(world.settings.get(names.SCRUBBED_AT)),
            oldest_proof_at=0.0 if read_back is None else _moment(read_back.oldest_at),
            unproven_bytes=0 if read_back is None else read_back.unproven_bytes,
            database_copied_at=_moment(world.settings.get(names.DATABASE_COPIED_AT)),
        )

    def _last_data_check_at(self) -> str:
        """When a check that read data last came to its end and found nothing."""
        jobs = (self._world.jobs.job(job) for job in self._world.jobs.last_data_checks().values())
        ends = [
            job.finished_at
            for job in jobs
            if job.error is None or job.error.code != IntegrityError.code
        ]
        return max(ends, default="")


def _age(text: str, now: datetime) -> float:
    """Seconds since then, never below 0: clocks are set back. 0.0 for an empty text."""
    return max(0.0, (now - parse_utc(text)).total_seconds()) if text else 0.0


def _moment(text: str) -> float:
    """Seconds since 1970; 0.0 for an empty text."""
    return parse_utc(text).timestamp() if text else 0.0
