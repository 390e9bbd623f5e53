"""A repair of the repository: done by a proxy that reaches it, told as what was mended and what stays lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from holdfast_common.errors import NotFound
from holdfast_common.identity import AgentId
from holdfast_common.job_result import JobResult
from holdfast_common.job_spec import RepairRepository
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.runs.agent_work import read_with_agent
from holdfast_controller.runs.damage_text import listing, told_damages
from holdfast_controller.runs.other_repository import OtherRepositoryKeys
from holdfast_controller.runs.repository_proxies import proxy_for_repair
from holdfast_controller.runs.repository_verdict import (
    ONE_AT_A_TIME,
    REPOSITORY,
    note_damaged_packs,
)
from holdfast_controller.runs.requests import RepairRequest
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob


class RepairPoints:
    """The work of one such job."""

    def __init__(self, world: World, request: RepairRequest) -> None:
        """Raises: Refused."""
        self._world = world
        self._request = request
        self._agent = proxy_for_repair(
            world, source_folder=request.source_folder, wanted=request.agent
        )

    def plan(self) -> list[str]:
        """For people."""
        what = "look what can be mended" if self._request.dry_run else "mend what can be"
        source = self._request.source_folder
        return [
            f"read all data and {what} on {self._agent.host_name}",
            f"take what is lost from {source}" if source else "without a copy to take from",
            *(
                ["that is another repository: only what our own digests prove is taken"]
                if self._request.other_key is not None
                else []
            ),
        ]

    def new_job(self) -> NewJob:
        """The job's row: never beside a prune or another repair."""
        return NewJob(kind="repair", subject=REPOSITORY, excluded_by=ONE_AT_A_TIME)

    def __call__(self, job: JobRow) -> JobResult:
        """Ends as failed with code `integrity` when something stays damaged."""
        world = self._world
        agent_id = AgentId(self._agent.agent_id)
        world.jobs.set_plan(job.job_id, level="", level_reason="", transport="", agent_id=agent_id)
        lineages = world.catalogue.lineages()
        other = self._other(job)
        if not self._request.dry_run:  # what it puts in place it signs, which only a listed key can
            world.keeper.authorise(agent_id)
        work = RepairRepository(
            keys=tuple(world.keeper.reader_keys(lineage_id) for lineage_id in lineages),
            expected_point_ids=tuple(row.point_id for row in world.catalogue.points()),
            source_folder=self._request.source_folder,
            dry_run=self._request.dry_run,
            other_keys=() if other is None else other.reader_keys(),
            content_keys=None if other is None else world.keeper.writer_keys(lineages[0]),
        )
        with world.lifecycle.cleaning(job.job_id):
            world.jobs.advance(job.job_id, JobEvent.TRANSFER, f"{len(lineages)} VMs")
            result = read_with_agent(world, job, agent_id=agent_id, work=work, other=other)
            world.damages.keep(job.job_id, result)
            note_damaged_packs(world, result)
            world.jobs.note(job.job_id, "repaired", f"{result.objects_checked} objects")
        told = told_damages(result, job.job_id)
        if not result.damages or result.error is None:
            return replace(told, error=result.error)
        every = f"`{listing(job.job_id)}` lists every point and byte range that stays lost"
        return replace(told, error=replace(result.error, advice=f"{every}; {result.error.advice}"))

    def _other(self, job: JobRow) -> OtherRepositoryKeys | None:
        """Raises: NoRepository, NotFound (no lineage yet), WrongKey, TimedOut (its mount hangs)."""
        request = self._request
        if request.other_key is None:
            return None
        if not self._world.catalogue.lineages():
            raise NotFound("no VM was backed up yet; there is nothing to mend")
        return OtherRepositoryKeys.opened(
            Path(request.source_folder), request.other_key, job=job, audit=self._world.audit
        )
