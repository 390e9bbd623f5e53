"""Forgetting what policies keep no longer, as a job: one round, by the controller itself, on a thread of its own.

It may be stopped at any time: each point is forgotten or is not, and the next round decides anew.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from holdfast_common.errors import Refused
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.repository.forget import ForgetPlan
from holdfast_common.repository.hang_watch import StopWhenGivenUp, while_it_answers
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.runs.forget_by_policies import ForgetByPolicies
from holdfast_controller.runs.repository_care import RepositoryCare
from holdfast_controller.runs.repository_verdict import ONE_AT_A_TIME
from holdfast_controller.runs.requests import ForgetRequest
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob

SUBJECT = "points"


class ForgetPoints:
    """The work of one such job."""

    def __init__(self, world: World, care: RepositoryCare, request: ForgetRequest) -> None:
        self._world = world
        self._care = care
        self._request = request

    def plan(self) -> list[str]:
        """For people."""
        return ["forget the points that no policy keeps any longer"]

    def new_job(self) -> NewJob:
        """The job's row: never beside a prune or a repair."""
        return NewJob(kind="forget", subject=SUBJECT, excluded_by=ONE_AT_A_TIME)

    def __call__(self, job: JobRow) -> JobResult:
        """One round; what became of how many points is told in the job's steps, each that goes in the audit trail.

        Raises: Refused when nothing can be forgotten: the clock is in doubt, or a policy cannot be read.
        """
        world = self._world
        waited = StopWhenGivenUp()

        def check() -> None:
            waited.check()
            world.lifecycle.check(job.job_id)

        with world.lifecycle.cleaning(job.job_id):
            world.jobs.advance(job.job_id, JobEvent.TRANSFER)
            by_policies = ForgetByPolicies.of(world, rows=world.catalogue.points())
            plan = while_it_answers(
                partial(
                    self._care.forget,
                    [],
                    actor=self._request.actor,
                    dry_run=False,
                    choose=by_policies.choose,
                    check=check,
                ),
                gave_up=waited.stop,
            )
            self._tell(job, by_policies, plan)
        if by_policies.clock_problem:
            raise Refused(f"nothing was forgotten: {by_policies.clock_problem}")
        return JobResult(outcome=Outcome.DONE)

    def _tell(self, job: JobRow, by_policies: ForgetByPolicies, plan: ForgetPlan) -> None:
        names = {row.point_id: row.vm_name for row in self._world.catalogue.points()}
        kept = Counter(
            reason for each in by_policies.told(plan) if each.kept for reason in each.reasons[:1]
        )
        note = partial(self._world.jobs.note, job.job_id)
        note("forgotten", f"{len(plan.forgotten)} points; {len(names)} stay")
        for reason, points in kept.most_common(REASONS_TOLD_MAX):
            note("kept", f"{points} points: {reason}")


REASONS_TOLD_MAX = 10
