"""`repo list` and `repo show`: what a repository is and holds, also while it cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.errors import NoRepository, NotFound
from holdfast_common.identity import PointId
from holdfast_common.places import find_places
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.prune_report import PruneLimits
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands import repo_show
from holdfast_controller.commands.init import initialise_without_repository
from holdfast_controller.commands.output import Output, plain
from holdfast_controller.configuration import ControllerConfiguration
from holdfast_controller.runs.doctor import examine
from holdfast_controller.runs.key_keeper import KeyKeeper
from holdfast_controller.runs.repository_facts import counted
from holdfast_controller.runs.requests import PruneRequest
from holdfast_controller.service.point_actions import PointActions
from holdfast_controller.service.repository_listing import RepositoryListing
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.settings import Settings
from holdfast_lab.server import RunningLab
from support.one_process import OneProcess, guest_writes, one_process


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory, lab: RunningLab) -> Iterator[OneProcess]:
    with one_process(tmp_path_factory.mktemp("holdfast"), lab) as ready:
        yield ready


def shown(holdfast: OneProcess, name: str = "") -> operator_pb2.RepositoryDetail:
    request = operator_pb2.RepositoryName(repository=name)
    return RepositoryListing(holdfast.world).show_repository(request)


def listed(holdfast: OneProcess) -> operator_pb2.Repository:
    (found,) = (
        RepositoryListing(holdfast.world).list_repositories(operator_pb2.Empty()).repositories
    )
    return found


def test_a_repository_is_told_with_all_that_an_administrator_asks_for(
    holdfast: OneProcess, lab: RunningLab, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = holdfast.folder / "repository"
    first = holdfast.back_up("web").point_id
    guest_writes(lab, "web", 0, length=1 << 17)
    second = holdfast.back_up("web").point_id
    assert first is not None
    assert second is not None
    PointActions(holdfast.world, holdfast.engine.care).hold(
        operator_pb2.HoldRequest(point_id=second, reason="a court asked")
    )
    holdfast.engine.care.forget([PointId(first)], actor="somebody", dry_run=False)
    before = listed(holdfast)
    assert (before.last_prune_at, before.last_check) == ("", "")
    limits = PruneLimits(grace=PruneLimits().grace * 0)
    holdfast.ended(holdfast.engine.start_prune(PruneRequest(limits=limits, actor="somebody")))
    detail = shown(holdfast)
    row = detail.repository
    assert listed(holdfast).used_bytes == row.used_bytes
    assert shown(holdfast, row.repository_id).vms == detail.vms
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert row.used_is_whole
    assert row.used_bytes == sum(path.stat().st_size for path in files)
    assert row.free_bytes > 0
    assert (row.points, row.vms, row.format, row.folder) == (1, 1, 1, str(folder))
    assert row.created_at
    assert "objects deleted" in row.last_prune
    assert {each.kind for each in detail.recipients} == {"key-file", "recovery-sheet"}
    assert [each.controller for each in detail.recipients].count(True) == 1
    assert {tuple(each.roles) for each in detail.writers} >= {("prune",)}
    assert (detail.writer_epoch, detail.decided_epoch, detail.doomed > 0) == (2, 0, True)
    assert detail.last_prune_counts["doomed"] == detail.doomed
    (held,) = detail.held
    assert (held.point_id, held.vm, held.reason) == (second, "web", "a court asked")
    (vm,) = detail.vms
    assert (vm.vm, vm.points, vm.capacity_bytes) == ("web", 1, 1 << 20)
    assert detail.reserve_bytes
    kinds = {each.kind: each.objects for each in detail.objects}
    assert (kinds["points"], kinds["holds"], kinds["fences"]) == (1, 1, 1)
    assert isinstance(plain(detail)["last_prune_counts"]["doomed"], int)  # type: ignore[index]  # of a map
    repo_show._show_summary(detail, Output(as_json=False))
    repo_show._show_keys(detail, Output(as_json=False))
    repo_show._show_writing(detail, Output(as_json=False))
    repo_show._show_content(detail, Output(as_json=False))
    text = capsys.readouterr().out
    for part in (row.repository_id, "recovery-sheet", "a court asked", "last fence", "web"):
        assert part in text
    with pytest.raises(NotFound):
        shown(holdfast, "another")


def test_a_count_that_takes_too_long_says_that_it_is_not_whole(holdfast: OneProcess) -> None:
    class Hasty(SystemClock):
        asked = 0

        def monotonic_seconds(self) -> float:
            self.asked += 1000
            return float(self.asked)

    class Many(DirectoryStore):
        def list(self, prefix: str):  # type: ignore[no-untyped-def]  # as the store's own
            for info in super().list(prefix):
                yield from [info] * 300

    with Many.open(holdfast.folder / "repository") as store:
        usage = counted(store, Hasty())
    assert not usage.is_whole
    assert usage.stored_bytes > 0


def test_a_repository_that_is_gone_is_listed_with_why_and_cannot_be_shown(
    holdfast: OneProcess,
) -> None:
    folder = holdfast.folder / "repository"
    away = holdfast.folder / "away"
    points = len(holdfast.world.catalogue.points()) or len([holdfast.back_up("web").point_id])
    folder.rename(away)
    try:
        row = listed(holdfast)
        assert (row.points, row.capacity_bytes, row.used_is_whole) == (points, 0, False)
        assert row.problems[0].startswith("no_repository: ")
        with pytest.raises(NoRepository):
            shown(holdfast)
    finally:
        away.rename(folder)


def test_a_controller_without_a_repository_lists_none_and_its_doctor_says_so(
    holdfast: OneProcess, tmp_path: Path
) -> None:
    places = find_places({"HOLDFAST_HOME": str(tmp_path / "home")})
    initialise_without_repository(places, ControllerConfiguration())
    database = open_database(places.database)
    settings = Settings(database)
    keeper = KeyKeeper(
        settings=settings,
        agents=holdfast.world.agents,
        audit=holdfast.world.audit,
        key_folder=places.controller_state / "keys",
        clock=SystemClock(),
    )
    world = replace(holdfast.world, settings=settings, keeper=keeper)
    try:
        listing = RepositoryListing(world)
        assert not listing.list_repositories(operator_pb2.Empty()).repositories
        with pytest.raises(NoRepository, match="no repository was made yet"):
            listing.show_repository(operator_pb2.RepositoryName())
        lines = {line.name: line for line in examine(world)}
        assert "no repository was made yet" in lines["repository"].detail
        assert "holdfast repo init" in lines["repository"].advice
        assert lines["recovery sheet"].state == "ok"
    finally:
        database.close()
