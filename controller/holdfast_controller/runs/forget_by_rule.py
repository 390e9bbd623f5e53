"""What a retention rule says of the points that are there: the facts it needs are gathered here, `decide` decides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from holdfast_common.errors import FormatError, IntegrityError, ObjectMissing
from holdfast_common.identity import PointId
from holdfast_common.repository.fence import Fences
from holdfast_common.repository.forget import ForgetPlan
from holdfast_common.repository.holds import read_hold
from holdfast_common.repository.keys import RepositoryKeys
from holdfast_common.repository.layout import hold_name
from holdfast_common.repository.lease_survey import survey_leases
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.points import PointList
from holdfast_common.repository.prune_plan import clock_problem
from holdfast_common.repository.prune_refusals import clock_facts
from holdfast_common.repository.storage_time import storage_time
from holdfast_controller.decide.retention import (
    Decision,
    KnownPoint,
    RetentionRule,
    plan_retention,
)
from holdfast_controller.runs.clock_watch import clock_doubt
from holdfast_controller.runs.results import LOWER_CONSISTENCY, NOT_PROTECTED
from holdfast_controller.runs.world import World
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.point_use import PointReaders

_LESS_THAN_ASKED: Final = (NOT_PROTECTED, LOWER_CONSISTENCY)  # of a partial backup's warnings


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRepository:
    """What is known of a repository at the moment in which points are to be forgotten."""

    store: ObjectStore
    keys: RepositoryKeys
    listed: PointList
    fences: Fences
    held: Collection[str]  # names of manifests
    last_seen: datetime | None  # the youngest time that the controller wrote down


Chooser = Callable[[SeenRepository], Collection[PointId]]


@dataclass(slots=True, kw_only=True)
class ForgetByRule:
    """A rule over the points of some VMs. ``only``: of what it drops, only these; empty: all of it.

    ``rows``: the points as the catalogue has them. ``decisions`` are there after `choose`.
    """

    world: World
    rule: RetentionRule
    rows: Sequence[PointRow]
    accept_clock: bool = False
    only: Collection[str] = ()
    decisions: list[Decision] = field(default_factory=list)

    def choose(self, seen: SeenRepository) -> set[PointId]:
        """The points that the rule drops. Raises: RepositoryFailed."""
        world = self.world
        now = world.clock.now()
        problem = ""
        if not self.accept_clock:
            problem = clock_doubt(world) or clock_problem_of(seen, now)
        repository_id = world.keeper.repository_id
        rows = [row for row in self.rows if row.repository_id == repository_id]
        self.decisions = plan_retention(
            known_points(world, seen, rows), self.rule, now=now, clock_problem=problem
        )
        dropped = {each.point.point_id for each in self.decisions if not each.kept}
        if self.only:
            dropped &= set(self.only)
        return {PointId(point_id) for point_id in dropped}

    def told(self, plan: ForgetPlan) -> list[Decision]:
        """The decisions, with what the repository itself keeps of what the rule drops."""
        return kept_by_repository(self.decisions, plan)


def kept_by_repository(decisions: Sequence[Decision], plan: ForgetPlan) -> list[Decision]:
    """The decisions, with what the repository itself keeps of what they drop."""
    kept = {item.name.rpartition("/")[2]: reason for item, reason in plan.kept}
    return [
        each
        if each.kept or each.point.point_id not in kept
        else replace(each, kept=True, reasons=(kept[each.point.point_id],))
        for each in decisions
    ]


def kept_for_readers(plan: ForgetPlan, readers: PointReaders) -> ForgetPlan:
    """The plan, in which what a job reads stays."""
    read = [(item, readers.of(item.name.rpartition("/")[2])) for item in plan.forgotten]
    return replace(
        plan,
        forgotten=tuple(item for item, reader in read if not reader),
        kept=(*plan.kept, *((item, reader) for item, reader in read if reader)),
    )


def clock_problem_of(seen: SeenRepository, now: datetime) -> str:
    """As a prune asks it, which would refuse; empty: nothing is wrong with the clock."""
    keys = seen.keys.common
    leases = survey_leases(seen.store, keys, seen.keys.writers(seen.store))
    facts = clock_facts(
        seen.fences,
        leases,
        now=now,
        storage_now=storage_time(seen.store),
        last_seen=seen.last_seen,
    )
    problem = clock_problem(facts)
    return problem and f"{problem}; see that it is right, then add --accept-clock"


def known_points(world: World, seen: SeenRepository, rows: Sequence[PointRow]) -> list[KnownPoint]:
    """These points as a rule sees them. Raises: RepositoryFailed."""
    there = {point.point_id for point in seen.listed.points}
    unusable = {item.name.rpartition("/")[2]: item.reason for item in seen.listed.unusable}
    unusable |= {name.rpartition("/")[2]: "it cannot be opened" for name in seen.listed.unopened}
    holds = {name.rpartition("/")[2]: name for name in seen.held}
    readers = world.point_use.readers()
    known_fault = fault_of_points(world)

    def fault(row: PointRow) -> str:
        if row.point_id not in there:
            return unusable.get(row.point_id, "it is not in the repository")
        return known_fault(row)

    return [
        KnownPoint(
            point_id=row.point_id,
            lineage_id=row.lineage_id,
            created_at=row.created_at,
            fault=fault(row),
            held=_hold_text(seen, holds[row.point_id]) if row.point_id in holds else "",
            reader=readers.of(row.point_id),
        )
        for row in rows
    ]


def fault_of_points(world: World) -> Callable[[PointRow], str]:
    """What the database knows now to be wrong with a point; empty: nothing. Raises: StoreFailed, Locked."""
    damaged = world.point_use.damaged()
    suspects = world.catalogue.suspects()
    lowered = world.point_use.lowered(_LESS_THAN_ASKED)

    def fault(row: PointRow) -> str:
        if row.point_id in suspects:
            return f"in doubt: {suspects[row.point_id]}"
        return damaged.get(row.point_id, "") or lowered.get(row.job_id, "")

    return fault


def _hold_text(seen: SeenRepository, name: str) -> str:
    try:
        hold = read_hold(
            seen.store, hold_name(name), seen.keys.common, seen.keys.writers(seen.store)
        )
    except ObjectMissing:
        return "held a moment ago"
    except (IntegrityError, FormatError) as error:
        return f"held: nobody knows why: {error}"
    return f"held: {hold.reason}" if hold.reason else "held, no reason given"
