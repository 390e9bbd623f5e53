"""What is known of the repository's data: by the last check of all of it, and by backups since then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from holdfast_common.clock import utc_text
from holdfast_common.errors import IntegrityError, PreviousLost, RepositoryFailed
from holdfast_common.identity import LineageId
from holdfast_common.job_result import ErrorReport, JobResult, Outcome
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.settings import DAMAGED_PACKS, LOSS_FOUND_AT

LOST: Final = "what an incremental would have built on is no longer whole"
REPOSITORY: Final = "repository"  # the subject of a check of all of it
ONE_AT_A_TIME: Final = (
    "prune",
    "repair",
    "forget",
)  # kinds of jobs that take objects away, or put others in their place


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryVerdict:
    """``damage``: what a check found, ``doubt``: what a backup found since; both empty: nothing is known."""

    checked: str  # for people: when, and by which job
    damage: str = ""
    doubt: str = ""


def note_loss(world: World, job: JobRow, error: ErrorReport) -> None:
    """When a backup failed because of what earlier points have lost, the next attempt is a full without them.

    Storage that fails may work again; when it fails in every attempt for one point or map, that is lost.
    """
    lost = error.code == PreviousLost.code
    if error.code == RepositoryFailed.code and job.attempt >= world.configuration.attempts_max:
        lost = dict(error.facts).get("name", "").startswith(("points/", "maps/"))
    if lost:
        world.catalogue.require_full(LineageId(job.lineage_id), LOST)
        world.settings.set(LOSS_FOUND_AT, utc_text(world.clock.now()))


def note_damaged_packs(world: World, result: JobResult, *, all_data: bool = True) -> None:
    """What a check found that read data: rotten bytes, which nothing else sees. The next one judges anew.

    One that did not read all of the data only adds to what is known.
    """
    if result.outcome is not Outcome.DONE and not result.damages:
        return  # it did not come to an end
    found = {
        damage.object_name.rpartition("/")[2]
        for damage in result.damages
        if damage.object_name.startswith("packs/")
    }
    if not all_data:
        found |= set(world.settings.get(DAMAGED_PACKS).split())
    world.settings.set(DAMAGED_PACKS, " ".join(sorted(found)))


def damaged_packs(world: World) -> tuple[bytes, ...]:
    """Digests of the packs on which no new point is built."""
    return tuple(bytes.fromhex(text) for text in world.settings.get(DAMAGED_PACKS).split())


def repository_verdict(world: World) -> RepositoryVerdict:
    """By the newest check that came to an end; one of some points only can tell of damage, not of none."""
    found_at = world.settings.get(LOSS_FOUND_AT)
    for job in world.jobs.ended_checks():
        damaged = job.error is not None and job.error.code == IntegrityError.code
        if not damaged and (job.state is not JobState.DONE or job.subject != REPOSITORY):
            continue
        checked = f"{job.finished_at[:19]}, job {job.job_id}"
        if damaged:
            assert job.error is not None
            return RepositoryVerdict(
                checked=checked, damage=f"{job.error.message} (check of {checked})"
            )
        rotten = len(damaged_packs(world))
        if rotten:  # which only a check that reads all data can see, or see mended
            return RepositoryVerdict(
                checked=checked,
                damage=f"the repository is damaged: {rotten} packs, by a check that read all data",
            )
        return RepositoryVerdict(
            checked=checked, doubt=_doubt(found_at) if found_at > job.created_at else ""
        )
    return RepositoryVerdict(checked="", doubt=_doubt(found_at) if found_at else "")


def _doubt(found_at: str) -> str:
    return f"a backup found at {found_at[:19]} that earlier points have lost something"
