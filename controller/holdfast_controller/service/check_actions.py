"""What operators can do to know that the repository is whole, and to mend it: message in, message out."""

from __future__ import annotations

from typing import Final

from holdfast_common.errors import NotFound
from holdfast_common.identity import JobId
from holdfast_common.logs import Secret
from holdfast_common.wire import operator_pb2
from holdfast_common.wire_codec.results import damage_to_message
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.requests import CheckRequest, RepairRequest
from holdfast_controller.runs.world import World
from holdfast_controller.service.operator_messages import damage_summary_message, started_message

PAGE_BYTES_MAX: Final = 256 * 1024  # and one row: messages stay below 1 MiB
PAGE_ROWS_MAX: Final = 200


class CheckActions:
    """Thread-safe."""

    def __init__(self, world: World, engine: Engine) -> None:
        self._world = world
        self._engine = engine

    def start_check(self, request: operator_pb2.StartCheckRequest) -> operator_pb2.RunStarted:
        """Begin a check. Raises: NotFound, Refused, UsageError."""
        points = tuple(
            self._world.catalogue.point(point_id).point_id for point_id in request.point_ids
        )
        wanted = CheckRequest(
            read_data=request.read_data,
            point_ids=points,
            subset=request.subset,
            agent=request.agent,
        )
        return started_message(self._world, self._engine.start_check(wanted))

    def start_repair(self, request: operator_pb2.StartRepairRequest) -> operator_pb2.RunStarted:
        """Begin a repair. Raises: Locked, NotFound, Refused."""
        wanted = RepairRequest(
            source_folder=request.source_folder,
            dry_run=request.dry_run,
            other_key=Secret(request.other_key) if request.other_key else None,
            agent=request.agent,
        )
        return started_message(self._world, self._engine.start_repair(wanted))

    def list_damages(self, request: operator_pb2.DamageQuery) -> operator_pb2.DamagePage:
        """Some of what a check found or a repair left. Raises: NotFound."""
        job = self._world.jobs.job(JobId(request.job_id))
        totals = self._world.damages.totals(job.job_id)
        if totals is None:
            raise NotFound(
                "there is no list of damages of that job: it found none, or was not one of the latest checks",
                job=job.job_id,
                advice="`holdfast repo check --read-data` makes a new one",
            )
        page = operator_pb2.DamagePage(summary=damage_summary_message(totals))
        rows = self._world.damages.rows(job.job_id, start=request.start, count=PAGE_ROWS_MAX)
        length = 0
        for number, row in enumerate(rows, request.start):
            if length > PAGE_BYTES_MAX:
                page.next = number
                return page
            page.damages.append(damage_to_message(row))
            length += page.damages[-1].ByteSize()
        if len(rows) == PAGE_ROWS_MAX:
            page.next = request.start + PAGE_ROWS_MAX
        return page
