"""What operators can ask about repositories: message in, message out. A controller has one, or none yet."""

from __future__ import annotations

from holdfast_common.errors import NoRepository, NotFound
from holdfast_common.identity import AgentId, JobId
from holdfast_common.repository.lease_survey import AnnouncedWriter
from holdfast_common.units import size_text
from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.repository_facts import (
    NAME,
    RepositoryInside,
    RepositorySummary,
    VmShare,
    repository_inside,
    repository_summary,
    vm_shares,
)
from holdfast_controller.runs.repository_verdict import damaged_packs
from holdfast_controller.runs.world import World
from holdfast_controller.service.key_actions import recipient_message
from holdfast_controller.store import settings as names
from holdfast_controller.store.prunes import PruneRow


class RepositoryListing:
    """Thread-safe."""

    def __init__(self, world: World) -> None:
        self._world = world

    def list_repositories(self, _: operator_pb2.Empty) -> operator_pb2.RepositoryList:
        """All of them: one, or none."""
        summary = repository_summary(self._world)
        found = [] if summary is None else [self._summary(summary)]
        return operator_pb2.RepositoryList(repositories=found)

    def show_repository(
        self, request: operator_pb2.RepositoryName
    ) -> operator_pb2.RepositoryDetail:
        """One in detail. Raises: NotFound, NoRepository, and what keeps it from being read."""
        world = self._world
        summary = repository_summary(world)
        if summary is None:
            raise NoRepository(
                "no repository was made yet", advice="make one with `holdfast repo init DIRECTORY`"
            )
        if request.repository not in ("", NAME, summary.repository_id, summary.folder):
            raise NotFound(
                "there is no such repository",
                repository=request.repository,
                advice="see `holdfast repo list`",
            )
        inside = repository_inside(world)
        newest = inside.fences.newest
        prune = summary.prune
        own = world.keeper.own_unlock()
        return operator_pb2.RepositoryDetail(
            repository=self._summary(summary),
            key_generation=inside.generation.generation,
            key_epoch=inside.key_epoch,
            recipients=[recipient_message(each, own) for each in inside.generation.recipients],
            sheet_confirmed_at=world.settings.get(names.SHEET_CONFIRMED_AT),
            writers=self._writers(inside),
            writer_epoch=inside.fences.current_epoch,
            decided_epoch=inside.fences.decided_epoch,
            last_fence_at="" if newest is None else newest.closed_at,
            doomed=0 if newest is None else len(newest.tombstones),
            announced=[_announced(writer, at_work) for writer, at_work in inside.announced],
            objects=[
                operator_pb2.ObjectCount(
                    kind=each.kind, objects=each.objects, stored_bytes=each.stored_bytes
                )
                for each in summary.usage.kinds
            ],
            held=self._held(inside),
            reserve_bytes=inside.reserve_bytes,
            vms=[_vm(share) for share in vm_shares(world.catalogue.points())],
            last_prune_counts={} if prune is None else prune.counts,
            damaged_packs=len(damaged_packs(world)),
        )

    def _summary(self, summary: RepositorySummary) -> operator_pb2.Repository:
        prune = summary.prune
        return operator_pb2.Repository(
            name=NAME,
            repository_id=summary.repository_id,
            folder=summary.folder,
            format=summary.format,
            created_at=summary.created_at,
            used_bytes=summary.usage.stored_bytes,
            used_is_whole=summary.usage.is_whole,
            free_bytes=summary.free_bytes,
            capacity_bytes=summary.capacity_bytes,
            points=summary.points,
            vms=summary.vms,
            last_prune_at="" if prune is None else prune.ended_at or prune.started_at,
            last_prune="" if prune is None else self._prune_text(prune),
            last_check=summary.verdict.checked,
            problems=summary.problems,
        )

    def _prune_text(self, prune: PruneRow) -> str:
        if prune.problem:
            return prune.problem
        if not prune.ended_at:
            running = {job.job_id for job in self._world.jobs.unfinished()}
            return "at work" if prune.job_id in running else "cut off"
        counts = prune.counts
        deleted, size = counts.get("deleted", 0), size_text(counts.get("deleted_bytes", 0))
        return f"{deleted} objects deleted, {size}"

    def _writers(self, inside: RepositoryInside) -> list[operator_pb2.RepositoryWriter]:
        hosts = {agent.agent_id: agent.host_name for agent in self._world.agents.all()}
        return [
            operator_pb2.RepositoryWriter(
                agent_id=writer.agent_id,
                host_name=hosts.get(AgentId(writer.agent_id), ""),
                roles=writer.roles,
                added_at=writer.added_at,
                revoked_at=writer.revoked_at,
                public_key=writer.public_key.hex(),
            )
            for writer in inside.writers.writers
        ]

    def _held(self, inside: RepositoryInside) -> list[operator_pb2.HeldPoint]:
        known = {row.job_id: row for row in self._world.catalogue.points()}
        found = []
        for hold in inside.holds:
            made_by = JobId(hold.point_name.rpartition("/")[2])
            row = known.get(made_by)
            found.append(
                operator_pb2.HeldPoint(
                    point_id=made_by if row is None else row.point_id,
                    vm="" if row is None else row.vm_name,
                    held_at=hold.held_at,
                    reason=hold.reason,
                )
            )
        return found


def _announced(writer: AnnouncedWriter, at_work: bool) -> operator_pb2.AnnouncedWriter:
    record = writer.record
    return operator_pb2.AnnouncedWriter(
        job_id="" if record is None else record.job_id,
        epoch=writer.writer_epoch,
        renewed_at="" if record is None else record.written_at,
        at_work=at_work,
    )


def _vm(share: VmShare) -> operator_pb2.VmInRepository:
    return operator_pb2.VmInRepository(
        vm=share.vm_name,
        instance_uuid=share.instance_uuid,
        points=share.points,
        oldest_at=share.oldest_at,
        newest_at=share.newest_at,
        capacity_bytes=share.capacity_bytes,
        stored_bytes=share.stored_bytes,
    )
