"""A check of the repository, or of some points: done by a proxy that reaches it, told as what is lost."""

from __future__ import annotations

from holdfast_common.errors import UsageError
from holdfast_common.identity import AgentId
from holdfast_common.job_result import JobResult
from holdfast_common.job_spec import CheckRepository
from holdfast_common.repository.subset import parsed_subset
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.runs.agent_work import read_with_agent
from holdfast_controller.runs.damage_text import told_damages
from holdfast_controller.runs.repository_proxies import proxies_with_repository
from holdfast_controller.runs.repository_verdict import REPOSITORY, note_damaged_packs
from holdfast_controller.runs.requests import CheckRequest
from holdfast_controller.runs.verified_data import after_check
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob

SOME_POINTS = "some points"


class CheckPoints:
    """The work of one such job."""

    def __init__(self, world: World, request: CheckRequest) -> None:
        """Raises: UsageError (the subset), Refused."""
        if request.subset and not request.read_data:
            raise UsageError(
                "a subset is one of the data: it goes with reading it", advice="add --read-data"
            )
        parsed_subset(request.subset)
        self._world = world
        self._request = request
        # A proof counts for what others wrote than its prover: so those that reach the data take turns.
        last = world.jobs.last_data_checks() if request.read_data else {}
        self._agent = min(
            proxies_with_repository(world, request.agent),
            key=lambda agent: last.get(AgentId(agent.agent_id), ""),
        )

    def plan(self) -> list[str]:
        """For people."""
        what = "all data" if self._request.read_data else "the structure"
        if self._request.subset:
            what = f"{self._request.subset} of the data"
        which = (
            f"{len(self._request.point_ids)} points" if self._request.point_ids else "all points"
        )
        return [f"check {what} of {which} on {self._agent.host_name}"]

    def new_job(self) -> NewJob:
        """The job's row."""
        return NewJob(kind="check", subject=SOME_POINTS if self._request.point_ids else REPOSITORY)

    def __call__(self, job: JobRow) -> JobResult:
        """Ends as failed with code `integrity` when something is damaged."""
        world = self._world
        agent_id = AgentId(self._agent.agent_id)
        world.jobs.set_plan(job.job_id, level="", level_reason="", transport="", agent_id=agent_id)
        lineages = world.catalogue.lineages()
        expected = tuple(row.point_id for row in world.catalogue.points())
        if self._request.point_ids:
            expected = ()
            chosen = {
                world.catalogue.point(point_id).lineage_id for point_id in self._request.point_ids
            }
            lineages = sorted(chosen)
        if self._request.read_data:  # what it finds true it signs, which only a listed key can
            world.keeper.authorise(agent_id)
        work = CheckRepository(
            read_data=self._request.read_data,
            point_ids=self._request.point_ids,
            subset=self._request.subset,
            keys=tuple(world.keeper.reader_keys(lineage_id) for lineage_id in lineages),
            expected_point_ids=expected,
        )
        with world.lifecycle.cleaning(job.job_id):
            world.jobs.advance(job.job_id, JobEvent.TRANSFER, f"{len(lineages)} VMs")
            result = read_with_agent(world, job, agent_id=agent_id, work=work)
            world.damages.keep(job.job_id, result)
            if self._request.read_data:
                note_damaged_packs(world, result, all_data=not self._request.subset)
                after_check(world)
            world.jobs.note(job.job_id, "checked", f"{result.objects_checked} objects")
        return told_damages(result, job.job_id)
