"""Jobs on the repository itself: checked, mended, pruned, scrubbed, points forgotten. Planned here, begun by `engine`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from holdfast_controller.runs.check_points import CheckPoints
from holdfast_controller.runs.forget_points import ForgetPoints
from holdfast_controller.runs.loads import CHECKS, PAUSE, PRUNES
from holdfast_controller.runs.planned_job import Planned
from holdfast_controller.runs.prune_repository import PruneRepository
from holdfast_controller.runs.repair_points import RepairPoints
from holdfast_controller.runs.repository_care import RepositoryCare
from holdfast_controller.runs.requests import (
    CheckRequest,
    ForgetRequest,
    PruneRequest,
    RepairRequest,
    ScrubRequest,
    Started,
)
from holdfast_controller.runs.scrub_packs import ScrubPacks
from holdfast_controller.runs.world import World
from holdfast_controller.store.new_jobs import Also, nothing_else

KINDS: Final = frozenset({"check", "repair", "prune", "scrub", "forget"})


class Start(Protocol):
    """Writes a run and its jobs down, and has them begin."""

    def __call__(
        self,
        kind: str,
        request: dict[str, object],
        planned: Sequence[Planned],
        plan: Sequence[str],
        *,
        also: Also = nothing_else,
    ) -> Started:
        """``also``: what must be there with the run, or not at all."""
        ...


class RepositoryJobs:
    """Thread-safe."""

    def __init__(self, world: World, care: RepositoryCare, start: Start) -> None:
        self._world = world
        self._care = care
        self._start = start

    def check(self, request: CheckRequest, *, also: Also = nothing_else) -> Started:
        """Raises: NotFound, Refused, NoRepository."""
        self._world.keeper.keys()
        work = CheckPoints(self._world, request)
        return self._start(
            "check",
            {
                "read_data": request.read_data,
                "subset": request.subset,
                "points": list(request.point_ids),
            },
            [Planned(job=work.new_job(), work=work, loads=(CHECKS, PAUSE, *request.gates))],
            work.plan(),
            also=also,
        )

    def repair(self, request: RepairRequest) -> Started:
        """Raises: Locked when a prune or a repair has not ended, NotFound, Refused, NoRepository."""
        self._world.keeper.keys()
        work = RepairPoints(self._world, request)
        planned = Planned(job=work.new_job(), work=work, loads=(CHECKS, PAUSE))
        return self._start("repair", {}, [planned], work.plan())

    def prune(self, request: PruneRequest, *, also: Also = nothing_else) -> Started:
        """Raises: Locked when a prune or a repair has not ended, NoRepository."""
        self._world.keeper.keys()
        work = PruneRepository(self._world, self._care, request)
        loads = (PRUNES, PAUSE, *request.gates)
        planned = Planned(job=work.new_job(), work=work, loads=loads)
        return self._start("prune", {}, [planned], work.plan(), also=also)

    def forget(self, request: ForgetRequest, *, also: Also = nothing_else) -> Started:
        """Raises: Locked when a prune, a repair or another one has not ended, NoRepository."""
        self._world.keeper.keys()
        work = ForgetPoints(self._world, self._care, request)
        loads = (PRUNES, PAUSE, *request.gates)
        planned = Planned(job=work.new_job(), work=work, loads=loads)
        return self._start("forget", {}, [planned], work.plan(), also=also)

    def scrub(self, request: ScrubRequest, *, also: Also = nothing_else) -> Started:
        """Raises: NoRepository."""
        self._world.keeper.keys()
        work = ScrubPacks(self._world, request)
        loads = (CHECKS, PAUSE, *request.gates)
        planned = Planned(job=work.new_job(), work=work, loads=loads)
        return self._start("scrub", {"parts": request.parts}, [planned], work.plan(), also=also)
