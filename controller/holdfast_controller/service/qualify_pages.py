"""A qualification, page by page: its plan, what is done next, and in the end its report."""

from __future__ import annotations

import threading
from collections.abc import Generator

from holdfast_common.clock import utc_text
from holdfast_common.errors import NotFound
from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.qualify import Qualification, QualifyRequest
from holdfast_controller.runs.world import World


class QualifyPages:
    """One operator's: his calls come one after another, from whichever thread. Close it."""

    def __init__(self, world: World, engine: Engine, request: operator_pb2.QualifyRequest) -> None:
        self._world = world
        self._qualification = Qualification(
            world, engine, QualifyRequest(vm=request.vm, vcenter=request.vcenter)
        )
        self._steps: Generator[str, None, None] | None = None
        self._dry_run = request.dry_run
        self._ended = False
        self._lock = threading.Lock()
        self._left = False

    def next_page(self, _: operator_pb2.QualifyRequest) -> operator_pb2.QualifyPage | None:
        """None: that was all. Returns when the step before has been done, which may take hours."""
        with self._lock:
            page = self._next_page()
            if self._left:
                self._close()
            return page

    def close(self) -> None:
        """Nobody waits any more: after the step that is being done its points are forgotten. Twice is harmless."""
        self._left = True
        if self._lock.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._lock.release()

    def _next_page(self) -> operator_pb2.QualifyPage | None:
        if self._ended:
            return None
        if self._steps is None:
            self._ended = self._dry_run
            self._steps = self._qualification.steps()
            return operator_pb2.QualifyPage(plan=self._qualification.plan())
        step = next(self._steps, None)
        if step is not None:
            return operator_pb2.QualifyPage(step=step)
        self._ended = True
        return operator_pb2.QualifyPage(report=self._report())

    def _close(self) -> None:
        self._ended = True
        if self._steps is not None:
            self._steps.close()

    def _report(self) -> operator_pb2.QualifyReport:
        known = self._qualification.known
        row = self._world.vcenters.table.vcenter(known.vcenter_id)
        report = operator_pb2.QualifyReport(
            vm=known.vm.name,
            vcenter=row.name,
            product=row.product,
            version=row.version,
            taken_at=utc_text(self._world.clock.now()),
            findings=[
                operator_pb2.Finding(
                    name=each.behaviour.name.lower(),
                    behaviour=each.behaviour,
                    verdict=each.verdict,
                    detail=each.detail,
                )
                for each in self._qualification.findings()
            ],
        )
        try:
            around = self._world.vcenters.inventory.surroundings(known.vcenter_id)
        except NotFound:
            return report
        report.build = around.server.build
        report.hosts.extend(
            f"{host.name}: {host.version} build {host.build}"
            for host in around.hosts
            if host.moref == known.vm.host_moref
        )
        report.datastores.extend(
            f"{store.name}: {store.kind}"
            for store in around.datastores
            if store.name in known.vm.datastore_names
        )
        return report
