"""The repository's mount begins to hang in the middle of what the controller itself does there: each ends with 124."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_common.errors import TimedOut
from holdfast_common.repository import hang_watch, mount_probe
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.prune_report import PruneLimits
from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.requests import PruneRequest
from holdfast_controller.service.point_actions import PointActions
from holdfast_controller.service.repository_actions import RepositoryActions
from holdfast_controller.service.repository_listing import RepositoryListing
from holdfast_lab.server import RunningLab
from support.one_process import OneProcess, one_process
from support.unsynced_mount import UnsyncedMount, unsynced_mount

THREAD_SECONDS = 60.0
CALLS: dict[str, str] = {  # what hangs, and a call of the store in its middle
    "forget": "delete",
    "hold": "put",
    "unhold": "delete",
    "prune in the key keeper": "list",
    "a new writer": "list",
    "show": "list",
    "rebuild": "list",
    "prune at its beginning": "put",
    "prune at a deletion": "delete",
}


class Site:
    """A controller whose repository lies on a mount that can begin to hang."""

    def __init__(self, holdfast: OneProcess, mount: UnsyncedMount) -> None:
        self.holdfast = holdfast
        self.mount = mount
        self.points = PointActions(holdfast.world, holdfast.engine.care)
        self.repository = RepositoryActions(holdfast.world, holdfast.engine)

    def prune(self) -> None:
        limits = PruneLimits(grace=PruneLimits().grace * 0)
        job = self.holdfast.ended(
            self.holdfast.engine.start_prune(PruneRequest(limits=limits, actor="somebody"))
        )
        if job.error is not None:
            assert job.error.code == TimedOut.code, job.error
            raise TimedOut(job.error.message)

    def act(self, what: str, point_id: str) -> None:
        actions: dict[str, Callable[[], object]] = {
            "forget": lambda: self.repository.forget(
                operator_pb2.ForgetRequest(point_ids=[point_id])
            ),
            "hold": lambda: self.points.hold(operator_pb2.HoldRequest(point_id=point_id)),
            "unhold": lambda: self.points.hold(
                operator_pb2.HoldRequest(point_id=point_id, release=True)
            ),
        }
        actions |= {
            "show": lambda: RepositoryListing(self.holdfast.world).show_repository(
                operator_pb2.RepositoryName()
            ),
            "a new writer": lambda: self.holdfast.world.keeper.authorise(
                self.holdfast.world.agents.all()[0].agent_id
            ),
            "rebuild": lambda: self.repository.rebuild(operator_pb2.RebuildRequest(dry_run=True)),
        }
        actions.get(what, self.prune)()


@pytest.fixture
def site(tmp_path: Path, lab: RunningLab) -> Iterator[Site]:
    (tmp_path / "holdfast" / "repository").mkdir(parents=True)
    with (
        unsynced_mount(tmp_path / "holdfast" / "repository") as mount,
        one_process(tmp_path / "holdfast", lab) as ready,
    ):
        mount.set_time(ready.world.clock.now().timestamp())
        yield Site(ready, mount)


@pytest.mark.long
@pytest.mark.parametrize("what", CALLS)
def test_what_the_controller_does_ends_in_time_when_the_mount_begins_to_hang_in_its_middle(
    what: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the mount answers again its threads end, the next try works and no other point was harmed."""
    gone, stays = (site.holdfast.back_up("web").point_id or "" for _ in range(2))
    if what == "unhold":
        site.act("hold", gone)
    if what.startswith("prune"):
        site.act("forget", gone)
    monkeypatch.setattr(mount_probe, "ANSWER_SECONDS_MAX", 0.2)
    monkeypatch.setattr(hang_watch, "CALL_SECONDS", 0.3)
    monkeypatch.setattr(hang_watch, "LOOK_SECONDS", 0.05)
    hung = threading.Event()
    real = getattr(DirectoryStore, CALLS[what])

    def hangs_first(store: DirectoryStore, *arguments: object, **named: object) -> object:
        if not hung.is_set():
            hung.set()
            site.mount.hang()
        return real(store, *arguments, **named)

    before = set(threading.enumerate())
    monkeypatch.setattr(DirectoryStore, CALLS[what], hangs_first)
    try:
        with pytest.raises(TimedOut, match="does not answer") as caught:
            site.act(what, gone)
        assert hung.is_set()
        with pytest.raises(TimedOut):  # nor does one wait that begins now
            site.act("hold", stays)
    finally:
        site.mount.go_on()
    assert caught.value.exit_status == 124
    for thread in set(threading.enumerate()) - before:
        if thread.name.endswith("-work"):
            thread.join(THREAD_SECONDS)
            assert not thread.is_alive()
    monkeypatch.setattr(hang_watch, "CALL_SECONDS", 60.0)
    monkeypatch.setattr(mount_probe, "ANSWER_SECONDS_MAX", 60.0)
    if what != "forget":  # which had begun to delete: the call itself came to its end
        site.act(what, gone)
    site.prune()
    site.points.show_point(operator_pb2.PointName(point_id=stays))
    assert stays in [row.point_id for row in site.holdfast.world.catalogue.points()]
    detail = site.holdfast.engine.care.rebuild(actor="somebody", dry_run=True)
    assert stays not in detail.missing
