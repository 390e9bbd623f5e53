"""A check of the repository, or of some points: done by a proxy that reaches it, told as what is lost."""

from __future__ import annotations

from dataclasses import replace

from holdfast_common.errors import IntegrityError, Refused, UsageError
from holdfast_common.identity import AgentId
from holdfast_common.job_result import DamageFound, ErrorReport, JobResult, Outcome, Warned
from holdfast_common.job_spec import CheckRepository
from holdfast_common.repository.subset import parsed_subset
from holdfast_common.units import size_text
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.runs.agent_link import ConnectedAgent
from holdfast_controller.runs.agent_work import read_with_agent
from holdfast_controller.runs.repository_verdict import REPOSITORY, note_damaged_packs
from holdfast_controller.runs.requests import CheckRequest
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow, NewJob

DAMAGES_TOLD_MAX = 200
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
            proxies_with_repository(world), key=lambda agent: last.get(AgentId(agent.agent_id), "")
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
            if self._request.read_data:
                note_damaged_packs(world, result, all_data=not self._request.subset)
            world.jobs.note(job.job_id, "checked", f"{result.objects_checked} objects")
        return told_damages(result)


def proxy_with_repository(world: World) -> ConnectedAgent:
    """Any connected proxy that reaches the repository. Raises: Refused."""
    return proxies_with_repository(world)[0]


def proxies_with_repository(world: World) -> list[ConnectedAgent]:
    """All connected proxies that reach the repository, one at least. Raises: Refused."""
    repository_id = world.keeper.repository_id
    found = [
        agent
        for agent in world.link.connected()
        if agent.role == "proxy" and repository_id in agent.repositories
    ]
    if not found:
        raise Refused(
            "no connected proxy reaches the repository",
            advice="see `holdfast agent list` and `holdfast doctor`",
        )
    return found


def told_damages(result: JobResult) -> JobResult:
    """With its damages as warnings and, if there are any, its error, for people."""
    if not result.damages:
        return result
    warnings = [Warned(code="damage", message=_text(damage)) for damage in result.damages]
    points = {damage.point_id for damage in result.damages if damage.point_id}
    error = IntegrityError(
        f"the repository is damaged: {len(result.damages)} findings, {len(points)} points concerned",
        advice="restore from other points; `holdfast repo repair --from COPY` mends it from a copy, and"
        " deletes nothing",
    )
    return replace(
        result,
        outcome=Outcome.FAILED,
        error=ErrorReport.of(error),
        warnings=(*result.warnings, *warnings[:DAMAGES_TOLD_MAX]),
    )


def _text(damage: DamageFound) -> str:
    text = f"{damage.object_name}: {damage.problem}"
    if not damage.point_id:
        return text
    lost = "".join(
        f", offset {extent.offset} {size_text(extent.length)}" for extent in damage.lost[:5]
    )
    more = f" and {len(damage.lost) - 5} more" if len(damage.lost) > 5 else ""
    return f"{text}; lost of point {damage.point_id}, disk {damage.device_key}{lost}{more}"
