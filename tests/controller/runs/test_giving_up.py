"""A point whose manifest is damaged and that no copy has is given up when somebody says so, and only then."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from holdfast_common.errors import NotFound, Refused, TimedOut, UsageError
from holdfast_common.identity import JobId, LineageId, PointId, new_ulid
from holdfast_common.places import Places
from holdfast_common.repository.forget import ForgetPlan, PointName, forget_point
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.prune_report import PruneLimits
from holdfast_common.wire import operator_pb2
from holdfast_controller import main
from holdfast_controller.commands import repository_change
from holdfast_controller.runs import repository_care
from holdfast_controller.runs.repository_care import Rebuilt
from holdfast_controller.runs.requests import PruneRequest
from holdfast_controller.service import repository_actions
from holdfast_controller.service.point_actions import PointActions
from holdfast_controller.service.repository_actions import RepositoryActions
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.server import RunningLab
from support.one_process import OneProcess, one_process


@pytest.fixture
def holdfast(tmp_path: Path, lab: RunningLab) -> Iterator[OneProcess]:
    with one_process(tmp_path / "holdfast", lab) as ready:
        yield ready


@pytest.fixture
def cli(holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`holdfast` with these arguments and answers, beside the controller's own actions."""
    actions = RepositoryActions(holdfast.world, holdfast.engine)
    client = SimpleNamespace(
        stub=SimpleNamespace(ForgetPoints=actions.forget),
        call=lambda method, request: method(request),
    )

    @contextmanager
    def operators(_: Places) -> Iterator[SimpleNamespace]:
        yield client

    monkeypatch.setattr(repository_change, "operators", operators)

    def run(*arguments: str, answer: str = "") -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        return main.run(list(arguments))

    return run


def damaged_point(holdfast: OneProcess) -> tuple[str, Path]:
    """Its id and its manifest."""
    point_id = holdfast.back_up("web").point_id
    assert point_id
    return point_id, damaged_manifest(holdfast, point_id)


def damaged_manifest(holdfast: OneProcess, point_id: str) -> Path:
    """A point's, as a disk left it that lost its end."""
    (manifest,) = (holdfast.folder / "repository" / "points").rglob(point_id)
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes()[:-200] + bytes(200))
    return manifest


def pruned(holdfast: OneProcess) -> JobRow:
    limits = PruneLimits(grace=PruneLimits().grace * 0)
    return holdfast.ended(
        holdfast.engine.start_prune(PruneRequest(limits=limits, actor="somebody"))
    )


def test_the_operator_is_told_what_is_lost_and_asked_and_prunes_go_on_afterwards(
    holdfast: OneProcess, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    point_id, manifest = damaged_point(holdfast)
    content = manifest.read_bytes()
    refused = pruned(holdfast).error
    assert refused is not None
    assert f"/{point_id}" in refused.message + str(refused.facts)
    assert "point delete POINT --give-up" in refused.advice
    assert cli("point", "delete", point_id, "--yes") == Refused.exit_status
    assert "point delete POINT --give-up" in capsys.readouterr().err
    assert cli("point", "delete", point_id, "--give-up", "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["given_up"], told["done"]) == ([point_id], False)
    assert cli("point", "delete", point_id, "--give-up", answer="n\n") != 0
    asked = capsys.readouterr().err
    assert f"give up {point_id} of web, taken " in asked
    assert "its manifest cannot be read: " in asked
    assert "holdfast repo repair --from COPY" in asked
    assert "data that only it needs dies at the next prunes" in asked
    assert manifest.read_bytes() == content
    assert holdfast.world.catalogue.points()
    assert cli("point", "delete", point_id, "--give-up", answer="y\n") == 0
    assert not manifest.exists()
    name = manifest.relative_to(holdfast.folder / "repository")
    assert (holdfast.folder / "repository" / "aside" / name).read_bytes() == content
    assert not holdfast.world.catalogue.points()
    begun, done = [
        each for each in holdfast.world.audit.entries() if each.action == "give up a damaged point"
    ]
    assert (begun.object, begun.result) == (point_id, "begins")
    assert (done.object, done.result) == (point_id, f"aside/{name}")
    assert pruned(holdfast).error is None


def test_a_damaged_point_that_no_catalogue_knows_is_given_up_by_the_name_of_its_object(
    holdfast: OneProcess, cli: Callable[..., int]
) -> None:
    point_id, manifest = damaged_point(holdfast)
    holdfast.world.catalogue.remove(holdfast.world.catalogue.point(point_id).point_id)
    actions = RepositoryActions(holdfast.world, holdfast.engine)
    name = str(manifest.relative_to(holdfast.folder / "repository"))
    told = actions.rebuild(operator_pb2.RebuildRequest())
    assert any(line.startswith(f"not usable: {name}: ") for line in told.plan)
    with pytest.raises(NotFound):
        actions.forget(operator_pb2.ForgetRequest(point_ids=[name]))
    with pytest.raises(NotFound):
        actions.forget(operator_pb2.ForgetRequest(give_up=["points/00/NOSUCHPOINT"]))
    assert cli("repo", "forget", name, "--give-up", "--yes") == 0
    assert not manifest.exists()
    assert pruned(holdfast).error is None


@pytest.mark.parametrize("is_named_by_object", [False, True])
def test_a_damaged_held_point_that_no_catalogue_knows_is_let_go_of_and_then_given_up(
    holdfast: OneProcess,
    cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    is_named_by_object: bool,
) -> None:
    point_id = holdfast.back_up("web").point_id
    assert point_id
    points = PointActions(holdfast.world, holdfast.engine.care)
    points.hold(operator_pb2.HoldRequest(point_id=point_id, reason="a court asked"))
    manifest = damaged_manifest(holdfast, point_id)
    holdfast.world.catalogue.remove(holdfast.world.catalogue.point(point_id).point_id)
    name = str(manifest.relative_to(holdfast.folder / "repository"))
    assert cli("point", "delete", name, "--give-up", "--yes") == Refused.exit_status
    assert f"keep {point_id}: it is held" in capsys.readouterr().err
    with pytest.raises(NotFound):
        points.hold(operator_pb2.HoldRequest(point_id=name[:-1], release=True))
    released = operator_pb2.HoldRequest(
        point_id=name if is_named_by_object else point_id, release=True
    )
    assert points.hold(released).plan == [f"{released.point_id} is no longer held"]
    (begun,) = [each for each in holdfast.world.audit.entries() if "let go" in each.action]
    assert begun.object == point_id
    assert cli("point", "delete", name, "--give-up", "--yes") == 0
    assert not manifest.exists()


def test_what_was_given_up_for_a_hanging_mount_forgets_nothing_more_when_that_answers_later(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {holdfast.back_up("web").point_id or "" for _ in range(2)}
    told: list[Callable[[TimedOut], None]] = []

    def given_up_later(
        work: Callable[[], ForgetPlan | Rebuilt], *, gave_up: Callable[[TimedOut], None]
    ) -> ForgetPlan | Rebuilt:
        told.append(gave_up)
        return work()

    def forgotten(store: ObjectStore, point: PointName, *, check: Callable[[], None]) -> None:
        forget_point(store, point, check=check)
        told[-1](TimedOut("the mount does not answer"))

    monkeypatch.setattr(repository_actions, "while_it_answers", given_up_later)
    monkeypatch.setattr(repository_care, "forget_point", forgotten)
    actions = RepositoryActions(holdfast.world, holdfast.engine)
    with pytest.raises(TimedOut):
        actions.forget(operator_pb2.ForgetRequest(point_ids=sorted(points)))
    (left,) = holdfast.world.catalogue.points()
    assert left.point_id in points
    stored = [each for each in (holdfast.folder / "repository/points").rglob("*") if each.is_file()]
    assert [each.name for each in stored] == [left.point_id]
    begun = [each for each in holdfast.world.audit.entries() if each.action == "forget a point"]
    assert len(begun) == 1


def test_a_catalogue_is_not_made_anew_when_nobody_waits_for_it_any_more(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_id = holdfast.back_up("web").point_id
    assert point_id
    holdfast.world.catalogue.remove(holdfast.world.catalogue.point(point_id).point_id)

    def given_up(work: Callable[[], Rebuilt], *, gave_up: Callable[[TimedOut], None]) -> Rebuilt:
        gave_up(TimedOut("the mount does not answer"))
        return work()

    monkeypatch.setattr(repository_actions, "while_it_answers", given_up)
    with pytest.raises(TimedOut):
        RepositoryActions(holdfast.world, holdfast.engine).rebuild(operator_pb2.RebuildRequest())
    assert not holdfast.world.catalogue.points()


def test_a_rule_gives_nothing_up_and_nothing_that_is_held_is_given_up(
    holdfast: OneProcess, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    held, whole = (holdfast.back_up("web").point_id for _ in range(2))
    assert held
    assert whole
    points = PointActions(holdfast.world, holdfast.engine.care)
    points.hold(operator_pb2.HoldRequest(point_id=held, reason="a court asked"))
    manifest = damaged_manifest(holdfast, held)
    assert cli("point", "delete", held, "--give-up", "--yes") == Refused.exit_status
    assert f"nothing was forgotten: keep {held}: it is held" in capsys.readouterr().err
    points.hold(operator_pb2.HoldRequest(point_id=held[-8:], release=True))
    rule = ("repo", "forget", "--vm", "web", "--keep-last", "1")
    assert cli(*rule, "--give-up", "--yes") == UsageError.exit_status
    assert "only for restore points that are named" in capsys.readouterr().err
    assert cli(*rule, "--dry-run") == 0
    told = capsys.readouterr().out
    assert f"keep {held}: its manifest is there and cannot be used" in told
    assert cli(*rule, "--yes") == 0
    assert cli("repo", "forget", whole, "--yes") == 0
    assert manifest.exists(), "it was not named"
    assert cli("point", "delete", held, "--give-up", "--yes") == 0
    assert not manifest.exists()


def test_who_asks_for_nothing_is_told_so_and_a_vm_that_nobody_knows_is_an_error(
    holdfast: OneProcess, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert holdfast.back_up("web").point_id
    assert cli("repo", "forget", "--vm", "web", "--keep-last", "3", "--yes") == 0
    assert "dry run" not in capsys.readouterr().out
    assert cli("repo", "forget", "--vm", "wbe", "--keep-last", "3", "--yes") == NotFound.exit_status
    assert "no restore point is of a VM of that name" in capsys.readouterr().err


def test_points_of_vms_that_share_a_name_are_forgotten_by_instance_uuid_only(
    holdfast: OneProcess, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    points = [holdfast.back_up("web").point_id for _ in range(2)]
    row = holdfast.world.catalogue.points()[0]
    other = "5029ffff-0000-4000-8000-000000000001"
    for _ in range(2):
        twin = replace(
            row,
            point_id=PointId(new_ulid()),
            job_id=JobId(new_ulid()),
            lineage_id=LineageId("another"),
            instance_uuid=other,
        )
        holdfast.world.catalogue.add(twin)
    rule = ("repo", "forget", "--keep-last", "1", "--yes")
    assert cli(*rule, "--vm", "web") == UsageError.exit_status
    told = capsys.readouterr().err
    assert row.instance_uuid in told
    assert other in told
    assert len(holdfast.world.catalogue.points()) == 4
    assert cli(*rule, "--vm", row.instance_uuid.upper(), "--json") == 0
    assert json.loads(capsys.readouterr().out)["names"] == points[:1]
    left = holdfast.world.catalogue.points()
    assert sorted(each.instance_uuid for each in left).count(other) == 2
    assert points[1] in [each.point_id for each in left]
    assert len(left) == 3
