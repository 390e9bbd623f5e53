"""What must hold whenever something is deleted from the repository, asked at that moment (I2, I3, I8).

It judges by what lies there, by what operators were told, and by the policies and jobs as they were when the controller
opened the repository: that is what the product goes by.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from holdfast_common.repository import fence
from holdfast_common.repository.layout import hold_name
from holdfast_controller.decide.policy import Policy
from holdfast_controller.runs.results import LOWER_CONSISTENCY, NOT_PROTECTED
from holdfast_controller.store import settings as names
from simulation.virtual_repository import Manifest, VirtualRepository
from simulation.virtual_storage import VirtualStore
from simulation.virtual_time import Kernel, Life, Violation

if TYPE_CHECKING:
    from simulation.virtual_controller import VirtualController

CLOCK_OFF_SECONDS: Final = 300.0
NOTICED_SECONDS: Final = 20.0  # the controller looks at its clock every 15 s
SURELY_NOTICED_SECONDS: Final = 2 * 86400.0  # also when it jumped while the controller was down
ENDED: Final = "('done', 'partial', 'failed', 'cancelled', 'interrupted')"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAtOpening:
    """``readers``: points that jobs read, with their jobs. ``doubtful``: why no clock is to be believed; empty: it is."""

    policies: tuple[Policy, ...]
    readers: frozenset[tuple[str, str]]
    doubtful: str


class KeepingWatch:
    """``held``: points of which an operator was told that they are. ``by_hand``: those that operators want to go."""

    def __init__(
        self,
        kernel: Kernel,
        connection: sqlite3.Connection,
        repository: VirtualRepository,
        policies: Callable[[], Iterable[Policy]],
        *,
        grace_seconds: float,
    ) -> None:
        self.held: set[str] = set()
        self.by_hand: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.dies_after = (
            0  # steps of the controller, from when it next opens the repository; 0: it does not
        )
        self.clock_off_since: float | None = None
        self._kernel = kernel
        self._connection = connection
        self._repository = repository
        self._policies = policies
        self.clock_was_wrong = False
        self._noticeable = False
        self._jumped_in: Life | None = None  # a life that had looked at its clock before
        self._grace_seconds = grace_seconds
        self._dead_since: dict[str, float] = {}  # by name, for all that the newest fence calls dead

    def clock_moved(self, seconds: float, controller: VirtualController) -> None:
        """The wall clock of the controller jumps."""
        kernel = self._kernel
        if not kernel.wall_offset:  # without an earlier time nothing can be compared with it
            self._noticeable = self._setting(names.CLOCK_SEEN_AT) != ""
        looked = controller.is_up and kernel.now - controller.started_at > NOTICED_SECONDS
        self._jumped_in = controller.life if looked else None
        kernel.wall_offset += seconds
        if abs(kernel.wall_offset) < CLOCK_OFF_SECONDS:
            self.clock_off_since = None
        else:
            self.clock_was_wrong = True
            self.clock_off_since = kernel.now

    # -- as the storage tells --------------------------------------------------------------------------

    def opened(self, store: VirtualStore) -> None:
        store.facts = KnownAtOpening(
            policies=tuple(self._policies()),
            readers=self._readers(),
            doubtful=self._doubt(store.life),
        )
        if self.dies_after:
            store.life.crash_at = store.life.steps + self.dies_after
            self.dies_after = 0

    def put(self, name: str, body: Any) -> None:
        self._repository.was_put(name, body)
        if name.startswith("fences/"):
            dead = fence._from_json(self._repository.storage.objects[name].data).tombstones
            self._dead_since = {each: self._dead_since.get(each, self._kernel.now) for each in dead}

    def deleted(self, name: str, store: VirtualStore) -> None:
        try:
            self._check(name, store)
        except Violation as error:  # the product would take it for a failed job
            self._kernel.failure = self._kernel.failure or error
            raise

    # -- at rest ---------------------------------------------------------------------------------------

    def forgettable(self, instance_uuids: Collection[str]) -> list[str]:
        """Points of these VMs, which are all that policies cover, that nothing keeps."""
        policies = tuple(self._policies())
        rules = [each.retention.keep_last for each in policies if each.enabled]
        if not rules or any(each.retention.is_empty for each in policies):
            return []
        visible = self._repository.visible()
        found = []
        covered = [each for each in visible if each.record.instance_uuid in instance_uuids]
        for lineage_id in dict.fromkeys(each.lineage_id for each in covered):
            members = newest_first(each for each in visible if each.lineage_id == lineage_id)
            good = [each for each in members if self._is_good(each)]
            kept = {*members[: max(rules)], *good[: max(rules)], *(good or members)[:1]}
            found += [
                each.point_id
                for each in members
                if each not in kept and hold_name(each.name) not in self._repository.storage.objects
            ]
        return found

    # -- inside ----------------------------------------------------------------------------------------

    def _check(self, name: str, store: VirtualStore) -> None:
        if name.startswith("points/"):
            manifest: Manifest = self._repository.storage.objects[name].body
            if manifest in self._repository.visible():
                self._check_forgotten(manifest, store)
        else:
            self._repository.is_deleted(name)
            kind = name.partition("/")[0]
            if kind in ("packs", "maps"):
                self.counts[f"prune deleted of {kind}"] += 1
                since = self._dead_since.get(name)
                if since is None or self._kernel.now - since < self._grace_seconds:
                    raise Violation(f"{name} is deleted, and its grace time is not over")
                if store.facts.doubtful:
                    raise Violation(f"{name} is deleted although {store.facts.doubtful}")

    def _check_forgotten(self, point: Manifest, store: VirtualStore) -> None:
        known: KnownAtOpening = store.facts
        what = f"point {point.point_id} of {point.record.vm_name}"
        if hold_name(point.name) in self._repository.storage.objects or point.point_id in self.held:
            raise Violation(f"{what} is held, and is forgotten")
        for point_id, job_id in sorted(known.readers & self._readers()):
            if point_id == point.point_id:
                raise Violation(f"{what} is read by job {job_id}, and is forgotten")
        if point.point_id in self.by_hand:
            self.counts["a point was forgotten by hand"] += 1
            return
        self.counts["a point was forgotten by policies"] += 1
        if known.doubtful:
            raise Violation(f"{what} is forgotten although {known.doubtful}")
        self._check_rules(point, known.policies, what)

    def _check_rules(self, point: Manifest, policies: Sequence[Policy], what: str) -> None:
        if not any(each.enabled for each in policies):
            raise Violation(f"{what} is forgotten, and no policy says so")
        if any(each.retention.is_empty for each in policies):
            raise Violation(f"{what} is forgotten, and a policy keeps everything")
        count = max(each.retention.keep_last for each in policies)
        visible = [e for e in self._repository.visible() if e.lineage_id == point.lineage_id]
        if not self._is_good(point):
            catalogued = self._catalogued()
            known = [
                each
                for each in self._repository.committed.values()
                if each.lineage_id == point.lineage_id
                and (each in visible or each.point_id in catalogued)
            ]
            if point in newest_first(known)[:count]:
                raise Violation(f"{what} is forgotten, and is one of the newest {count}")
            return
        good = [each for each in visible if self._is_good(each)]
        if good == [point]:
            raise Violation(f"{what} is forgotten, and is the last good one")
        if point in newest_first(good)[:count]:
            raise Violation(f"{what} is forgotten, and is one of the newest {count}")

    def _is_good(self, point: Manifest) -> bool:
        suspects = self._connection.execute(
            "SELECT 1 FROM suspect_points WHERE point_id = ?", (point.point_id,)
        ).fetchone()
        lowered = self._connection.execute(
            "SELECT 1 FROM jobs, json_each(jobs.warnings) each WHERE job_id = ? AND state = 'partial'"
            " AND json_extract(each.value, '$.code') IN (?, ?)",
            (point.record.job_id, NOT_PROTECTED, LOWER_CONSISTENCY),
        ).fetchone()
        return suspects is None and lowered is None

    def _setting(self, name: str) -> str:
        row = self._connection.execute(
            "SELECT value FROM settings WHERE name = ?", (name,)
        ).fetchone()
        return "" if row is None else str(row[0])

    def _catalogued(self) -> set[str]:
        return {str(row[0]) for row in self._connection.execute("SELECT point_id FROM points")}

    def _readers(self) -> frozenset[tuple[str, str]]:
        rows = self._connection.execute(
            "SELECT each.value, job_id FROM jobs JOIN runs USING (run_id), json_each(request, '$.points') each"
            f" WHERE jobs.kind = 'check' AND state NOT IN {ENDED}"
        ).fetchall()
        return frozenset((str(row[0]), str(row[1])) for row in rows)

    def _doubt(self, life: Life) -> str:
        kernel, since = self._kernel, self.clock_off_since
        if since is None:
            return ""
        wrong = f"the clock is wrong by {kernel.wall_offset:.0f} s since {kernel.now - since:.0f} s"
        if self._repository.storage.tells_time:
            return wrong
        far = self._noticeable and abs(kernel.wall_offset) >= SURELY_NOTICED_SECONDS
        surely = far or self._jumped_in is life
        return wrong if surely and kernel.now - since > NOTICED_SECONDS else ""


def newest_first(points: Iterable[Manifest]) -> list[Manifest]:
    """By the time of their snapshots, as the catalogue has it."""
    return sorted(points, key=lambda each: (each.record.snapshot_at, each.point_id), reverse=True)
