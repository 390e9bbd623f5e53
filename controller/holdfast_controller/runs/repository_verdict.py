"""What is known of the repository's data: by the last check of all of it, and by backups since then."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_common.clock import utc_text
from holdfast_common.errors import IntegrityError
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.runs.check_points import REPOSITORY
from holdfast_controller.runs.world import World
from holdfast_controller.store.settings import LOSS_FOUND_AT


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryVerdict:
    """``damage``: what a check found, ``doubt``: what a backup found since; both empty: nothing is known."""

    checked: str  # for people: when, and by which job
    damage: str = ""
    doubt: str = ""


def note_loss(world: World) -> None:
    """A backup could not build on earlier points: they have lost something."""
    world.settings.set(LOSS_FOUND_AT, utc_text(world.clock.now()))


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
        return RepositoryVerdict(
            checked=checked, doubt=_doubt(found_at) if found_at > job.created_at else ""
        )
    return RepositoryVerdict(checked="", doubt=_doubt(found_at) if found_at else "")


def _doubt(found_at: str) -> str:
    return f"a backup found at {found_at[:19]} that earlier points have lost something"
