"""The controller's hold on its keys while they change: jobs at work, crashes at every call, strangers, new key files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.errors import (
    FormatError,
    IntegrityError,
    Refused,
    RepositoryFailed,
    WrongKey,
)
from holdfast_common.identity import AgentId, JobId, new_ulid
from holdfast_common.job_spec import Attempt
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.key_changes import rotate
from holdfast_common.repository.keys import open_repository
from holdfast_common.repository.points import list_points
from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
from holdfast_common.repository.recipients import KeyFileUnlock, recovery_recipient
from holdfast_common.repository.recovery_sheet import new_recovery_sheet
from holdfast_common.repository.writers import ROLE_VERIFY, ROLE_WRITE
from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.attempt import AttemptAnswers, AttemptInProgress
from holdfast_controller.runs.check_points import CheckPoints
from holdfast_controller.runs.key_keeper import KeyKeeper
from holdfast_controller.runs.requests import CheckRequest
from holdfast_controller.service.key_actions import KeyActions
from holdfast_controller.service.operator_actions import OperatorActions
from holdfast_controller.store import settings as names
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.faulty_store import Fault, FaultyStore
from support.one_process import OneProcess, disk_content, disk_truth, guest_writes

MIB = 1 << 20


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    web = MachinePlan(name="web", datastore="nfs1", disks=(DiskPlan(size_bytes=MIB),))
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    with running_lab(tmp_path / "lab", inventory=InventoryPlan(machines=(web, proxy))) as running:
        yield running


def started_again(holdfast: OneProcess) -> KeyKeeper:
    """The keeper of a controller that starts now, over the same database and files."""
    world = holdfast.world
    old = world.keeper
    return KeyKeeper(
        settings=world.settings,
        agents=world.agents,
        audit=world.audit,
        key_folder=old.key_file().parent,
        clock=world.clock,
    )


def test_keys_that_are_rotated_while_a_backup_runs_cost_it_nothing(
    holdfast: OneProcess, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began with the old keys, and asks for its grant after the rotation; the next one has the new keys."""
    keeper = holdfast.world.keeper
    first_epoch = keeper.keys().secrets.current.epoch
    guest_writes(lab, "web", 0, length=MIB // 2)
    granted = keeper.grant

    def rotated_before(*arguments: object, **options: object) -> object:
        monkeypatch.setattr(keeper, "grant", granted)
        keeper.change(rotate)
        return granted(*arguments, **options)  # type: ignore[arg-type]  # handed on

    monkeypatch.setattr(keeper, "grant", rotated_before)
    during = holdfast.back_up("web")
    assert (str(during.state), during.error) == ("done", None)
    assert keeper.keys().secrets.current.epoch == first_epoch + 1
    assert disk_content(holdfast, during) == disk_truth(lab, "web")
    guest_writes(lab, "web", 4096)
    after = holdfast.back_up("web")
    assert (str(after.state), after.level) == ("done", "incremental")
    assert disk_content(holdfast, after) == disk_truth(lab, "web")
    again = started_again(holdfast).keys()
    assert again.generation == keeper.keys().generation


def test_restores_and_checks_open_old_and_new_epochs_and_are_noted(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    guest_writes(lab, "web", 0, length=MIB // 2)
    job = holdfast.back_up("web")
    holdfast.world.keeper.change(rotate)

    def noted() -> list[str]:
        return [
            entry.actor
            for entry in holdfast.world.audit.entries()
            if entry.action == "open segment keys"
        ]

    assert not noted()  # nothing was opened for the backup
    assert disk_content(holdfast, job) == disk_truth(lab, "web")
    restore = holdfast.world.jobs.latest(subject="", limit=1)[0]
    assert any(restore.job_id in actor for actor in noted())
    assert holdfast.world.audit.first_broken() is None


def test_proxies_take_turns_at_reading_the_data_and_each_may_prove_it(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody vouches for what he wrote himself; and a proof counts only by who is listed for it."""
    holdfast.back_up("web")
    world = holdfast.world
    agent = holdfast.agent.agent
    public = world.agents.get(agent.agent_id).signing_public_key
    with DirectoryStore.open(world.keeper.folder) as store:
        world.keeper.keys().authorise_writer(
            store, public, agent_id=agent.agent_id, clock=world.clock, roles=[ROLE_WRITE]
        )
        job = holdfast.ended(holdfast.engine.start_check(CheckRequest(read_data=True)))
        assert str(job.state) == "done"
        listed = world.keeper.keys().writers(store).of(public)
    assert listed is not None
    assert ROLE_VERIFY in listed.roles
    other = replace(agent, agent_id=AgentId(new_ulid()), host_name="proxy2")
    monkeypatch.setattr(holdfast.agent, "connected", lambda: [agent, other])
    plans = [
        CheckPoints(world, CheckRequest(read_data=read_data)).plan() for read_data in (True, False)
    ]
    assert plans == [
        ["check all data of all points on proxy2"],
        ["check the structure of all points on proxy"],
    ]


def test_a_check_that_found_damage_was_a_turn_too(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all checks of a damaged repository go to one proxy, and nobody proves what that one wrote."""
    holdfast.back_up("web")
    for path in (holdfast.folder / "repository" / "packs").glob("*/*"):
        path.unlink()
    world = holdfast.world
    agent = holdfast.agent.agent
    request = CheckRequest(read_data=True)
    job = holdfast.ended(holdfast.engine.start_check(request))
    assert job.error is not None
    assert job.error.code == "integrity"
    other = replace(agent, agent_id=AgentId(new_ulid()), host_name="proxy2")
    monkeypatch.setattr(holdfast.agent, "connected", lambda: [agent, other])
    assert CheckPoints(world, request).plan() == ["check all data of all points on proxy2"]


class ShutsOut:
    """What of the administration of agents a revocation needs."""

    def __init__(self, holdfast: OneProcess) -> None:
        self.agents = holdfast.world.agents

    def revoke(self, agent_id: AgentId) -> None:
        self.agents.revoke(agent_id)


def test_where_there_is_no_repository_shutting_an_agent_out_is_all_there_is_to_do(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, agent_id = holdfast.world, holdfast.agent.agent.agent_id
    actions = OperatorActions(world, holdfast.engine, ShutsOut(holdfast))  # type: ignore[arg-type]  # all of it that is used
    monkeypatch.setattr(KeyKeeper, "has_repository", False)
    told = actions.revoke_agent(operator_pb2.AgentRevocation(agent=agent_id)).told
    assert told == ["it has no session; there is no repository in which it could write"]
    assert world.agents.get(agent_id).revoked_at


def test_an_agent_is_shut_out_at_once_also_where_damage_keeps_its_key_from_being_refused(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    """The one never waits for the other, and who asked is told what is done and what is left to do."""
    guest_writes(lab, "web", 0, length=MIB // 2)
    job = holdfast.back_up("web")
    world, agent_id = holdfast.world, holdfast.agent.agent.agent_id
    actions = OperatorActions(world, holdfast.engine, ShutsOut(holdfast))  # type: ignore[arg-type]  # all of it that is used
    (path,) = (each for each in (world.keeper.folder / "points").rglob("*") if each.is_file())
    whole = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(whole[:200] + bytes(8) + whole[208:])
    request = operator_pb2.AgentRevocation(agent=agent_id)
    with pytest.raises(Refused, match=r"shut out.*Still to do.*repair first: points/") as refused:
        actions.revoke_agent(request)
    assert "--give-up-damaged" in refused.value.advice
    assert world.agents.get(agent_id).revoked_at
    public = world.agents.get(agent_id).signing_public_key
    with DirectoryStore.open(world.keeper.folder) as store:
        listed = world.keeper.keys().writers(store).of(public)
        assert listed is not None
        assert not listed.revoked_at
        path.write_bytes(whole)
        told = actions.revoke_agent(request).told
        assert len(told) == 2
        listed = world.keeper.keys().writers(store).of(public)
        assert listed is not None
        assert listed.revoked_at
        (point,) = list_points(store, world.keeper.keys()).points
    assert point.point_id == job.point_id


def test_what_is_given_up_with_a_revoked_agent_is_named(holdfast: OneProcess) -> None:
    holdfast.back_up("web")
    world, agent_id = holdfast.world, holdfast.agent.agent.agent_id
    actions = OperatorActions(world, holdfast.engine, ShutsOut(holdfast))  # type: ignore[arg-type]  # all of it that is used
    (path,) = (each for each in (world.keeper.folder / "points").rglob("*") if each.is_file())
    path.chmod(0o600)
    path.write_bytes(b"rotten")
    request = operator_pb2.AgentRevocation(agent=agent_id, give_up_damaged=True)
    name = path.relative_to(world.keeper.folder).as_posix()
    assert actions.revoke_agent(request).told[2:] == [f"given up: {name}"]


def test_a_job_that_may_not_read_gets_no_segment_key(holdfast: OneProcess) -> None:
    waiting = AttemptInProgress(
        AttemptAnswers(on_result=lambda _: None, on_progress=lambda _: None)
    )
    with pytest.raises(Refused, match="may not open old data"):
        waiting.segment_keys([bytes(100)])
    attempt = Attempt(job_id=JobId("x"), number=1)
    for garbage in (b"", bytes(5), bytes(5000)):
        with pytest.raises(FormatError):
            holdfast.world.keeper.open_segment_keys(attempt, [garbage])
    with pytest.raises(WrongKey):
        holdfast.world.keeper.open_segment_keys(attempt, [b"\x01\0\0\0" + bytes(96)])


@pytest.mark.parametrize("reply_lost", [False, True])
def test_a_controller_that_crashes_in_a_change_of_its_own_key_opens_its_repository_again(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch, reply_lost: bool
) -> None:
    """Whatever call of the store fails, once: the present keeper goes on, and so does the next one."""
    world = holdfast.world
    actions = KeyActions(world)
    request = operator_pb2.KeyRotation(renew_controller_key=True)
    call, seen = 0, set()
    while True:
        fault = Fault(call=call, error=RepositoryFailed("lost"), reply_lost=reply_lost)
        before = world.keeper.keys().generation
        store = FaultyStore(DirectoryStore.open(world.keeper.folder), fault)
        with monkeypatch.context() as patch:
            patch.setattr(world.keeper, "_store", lambda store=store: store)
            try:
                actions.rotate_keys(request)
            except RepositoryFailed:
                assert store.failed_at
        fresh = started_again(holdfast)
        assert fresh.keys().generation == world.keeper.keys().generation
        seen.add(fresh.keys().generation - before)
        assert not fresh.problem()
        if not store.failed_at:
            break
        call += 1
    assert call > 8
    assert seen == {0, 1}
    assert [path.suffix for path in world.keeper.key_file().parent.iterdir()] == [".key"]


def test_the_old_key_file_opens_nothing_after_it_was_renewed(holdfast: OneProcess) -> None:
    keeper = holdfast.world.keeper
    keeper.keys()
    stolen = KeyFileUnlock(keeper.key_file().read_bytes())
    KeyActions(holdfast.world).rotate_keys(operator_pb2.KeyRotation(renew_controller_key=True))
    with pytest.raises(WrongKey):
        open_repository(DirectoryStore.open(keeper.folder), stolen)


def test_an_older_generation_is_refused_by_a_controller_that_saw_the_newer_one(
    holdfast: OneProcess,
) -> None:
    keeper = holdfast.world.keeper
    keeper.keys()
    folder = keeper.folder / "keys"
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    keeper.change(rotate)
    for path in folder.iterdir():
        path.unlink()
    for name, data in old.items():
        (folder / name).write_bytes(data)
    with pytest.raises(IntegrityError):
        started_again(holdfast).keys()


def test_a_new_sheet_that_was_typed_back_stands_for_one_that_never_was(
    holdfast: OneProcess,
) -> None:
    """Else who lost the first sheet could never begin to back up."""
    world = holdfast.world
    world.settings.set(names.SHEET_CONFIRMED_AT, "")
    sheet = new_recovery_sheet(repository_id="", randomness=SYSTEM_RANDOMNESS)
    recipient = recovery_recipient(sheet)
    request = operator_pb2.NewRecipient(
        kind=recipient.kind, label="new sheet", public_key=recipient.public_key
    )
    actions = KeyActions(world)
    actions.add_recipient(request)
    assert not world.settings.get(names.SHEET_CONFIRMED_AT)
    actions.remove_recipient(operator_pb2.RecipientRemoval(recipient="new sheet"))
    request.sheet_kept = True
    actions.add_recipient(request)
    assert world.settings.get(names.SHEET_CONFIRMED_AT)
