"""A controller is lost and brought back, without agents and vSphere: what is in its copy, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.errors import HoldfastError, NotFound, Refused, WrongKey
from holdfast_common.identity import AgentId, JobId
from holdfast_common.job_spec import Attempt
from holdfast_common.logs import Secret
from holdfast_common.places import HOME_VARIABLE, Places, find_places
from holdfast_common.repository.controller_copy import (
    CopyPlace,
    copies_by_age,
    extract_copy,
    stored_copies,
)
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.keys import open_repository
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.recipients import KeyFileUnlock, Unlock
from holdfast_controller import main
from holdfast_controller.runs.bring_back import BringingBack
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.repository_care import RepositoryCare
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.store import settings as names
from holdfast_controller.store.agents import AgentTable, NewAgent
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.database import Database
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.secrets import SecretSeal
from holdfast_controller.store.settings import Settings
from support.faulty_store import Fault, FaultyStore
from support.one_controller import OneController, one_controller

NOT_FOUND = NotFound.exit_status
PASSWORD = Secret(b"of the vCenter account")


@pytest.fixture
def lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OneController:
    """A controller with a repository, which has copied itself there."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    made = one_controller(tmp_path)
    join(made.database, "a1", "proxy1", bytes(32))
    made.settings.set("test.secret", made.seal.seal(PASSWORD, purpose="test").hex())
    made.backup.look()
    assert made.settings.get(names.SELF_BACKUP_PROBLEM) == ""
    return made


def join(database: Database, agent_id: str, host_name: str, public_key: bytes) -> None:
    agents = AgentTable(database, SystemClock())
    later = "2999-01-01T00:00:00.000000Z"
    agents.add_token(
        token_hash=agent_id,
        role="proxy",
        host_name=host_name,
        expires_at=SystemClock().now().replace(year=2999),
    )
    agents.join(
        agent_id,
        NewAgent(
            agent_id=AgentId(agent_id),
            role="proxy",
            host_name=host_name,
            signing_public_key=public_key,
            certificate_serial="7",
            certificate_ends_at=later,
        ),
    )


def lose(lost: OneController) -> None:
    lost.database.close()
    shutil.rmtree(lost.home)


def bring_back(lost: OneController, *more: str) -> int:
    sheet = lost.folder / "sheet"
    sheet.write_text(lost.sheet)
    secret = [] if any("file" in each for each in more) else ["--recovery-key-file", str(sheet)]
    return main.run(["init", "--from-repository", str(lost.repository), *secret, *more])


def opened(places: Places) -> tuple[Database, Settings]:
    database = open_database(places.database)
    return database, Settings(database)


def test_all_of_it_is_back_and_it_is_another_life(
    lost: OneController, capsys: pytest.CaptureFixture[str]
) -> None:
    controller_id = lost.settings.get(names.CONTROLLER_ID)
    authority = (lost.places.trust / "authority.pem").read_bytes()
    configuration = lost.places.controller_configuration.read_bytes()
    old_key = next((lost.places.controller_state / "keys").glob("*.key")).read_bytes()
    lose(lost)
    assert bring_back(lost, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["copy_name"] == "controller/0000000001/0000000001"
    assert (told["controller_epoch"], told["key_generation"]) == (2, 2)
    places = find_places()
    database, settings = opened(places)
    assert settings.get(names.CONTROLLER_ID) == controller_id
    assert settings.get(names.CONTROLLER_EPOCH) == "2"
    assert settings.get(names.SHEET_CONFIRMED_AT)
    assert (places.trust / "authority.pem").read_bytes() == authority
    assert places.controller_configuration.read_bytes() == configuration
    assert (places.configuration / "operators" / "administrator.pem").exists()
    seal = SecretSeal.from_file(places.controller_state / "secrets.key")
    sealed = bytes.fromhex(settings.get("test.secret"))
    assert seal.open(sealed, purpose="test").reveal() == PASSWORD.reveal()
    (agent,) = AgentTable(database, SystemClock()).all()
    assert agent.host_name == "proxy1"
    assert agent.session_epoch > 1000, "no session can have the number of one that was lost"
    audit = AuditTrail(database, SystemClock())
    assert audit.first_broken() is None
    assert audit.entries()[0].action == "bring the controller back"
    with DirectoryStore.open(lost.repository) as store:
        assert CopyPlace(controller_epoch=2, number=1) in stored_copies(store)
        with pytest.raises(WrongKey):
            open_repository(store, KeyFileUnlock(old_key))
        new_key = (places.controller_state / "keys" / f"{told['repository_id']}.key").read_bytes()
        assert open_repository(store, KeyFileUnlock(new_key)).generation == 2
    database.close()


def test_nothing_secret_of_the_controller_stands_in_the_repository(lost: OneController) -> None:
    everything = b"".join(p.read_bytes() for p in lost.repository.rglob("*") if p.is_file())
    state = lost.places.controller_state
    for path in (state / "secrets.key", lost.places.trust / "authority.key", lost.places.database):
        content = path.read_bytes()
        assert content[:64] not in everything, path.name
        assert content[-32:] not in everything, path.name


def test_a_wrong_secret_changes_nothing(
    lost: OneController, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lose(lost)
    wrong = tmp_path / "wrong"
    wrong.write_text(f"holdfast-key-1:{bytes(32).hex()}\n")
    before = everything_in(lost.repository)
    assert bring_back(lost, "--key-file", str(wrong)) == 12
    assert "does not open the repository" in capsys.readouterr().err
    assert not [path for path in lost.home.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert everything_in(lost.repository) == before
    assert bring_back(lost) == 0, "nothing is in the way"


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_repository_without_a_copy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    made = one_controller(tmp_path)
    lose(made)
    before = everything_in(made.repository)
    assert bring_back(made) == NOT_FOUND
    assert "no copy of a controller" in capsys.readouterr().err
    assert everything_in(made.repository) == before


def test_a_controller_that_is_set_up_is_not_written_over(lost: OneController) -> None:
    before = everything_in(lost.repository)
    assert bring_back(lost) == 15
    assert everything_in(lost.repository) == before


def test_what_makes_a_repository_does_not_go_with_one_that_is_there(lost: OneController) -> None:
    lose(lost)
    assert bring_back(lost, "--accept-recovery-sheet") == 2
    assert bring_back(lost, "--no-repository") == 2


def test_a_damaged_last_copy_is_passed_over_and_told(
    lost: OneController, capsys: pytest.CaptureFixture[str]
) -> None:
    lost.copy_now()
    last = lost.repository / "controller/0000000001/0000000002"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.chmod(0o600)
    last.write_bytes(bytes(data))
    lose(lost)
    assert bring_back(lost, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["copy_name"].endswith("0000000001")
    assert len(told["passed_over"]) == 1


def test_an_agent_revoked_since_the_copy_stays_revoked_and_one_that_joined_since_is_told(
    lost: OneController, capsys: pytest.CaptureFixture[str]
) -> None:
    """The repository's list of writers is newer than the copy."""
    join(lost.database, "a2", "proxy2", bytes([2]) * 32)
    lost.copy_now()
    join(lost.database, "a3", "proxy3", bytes([3]) * 32)
    for agent in ("a1", "a2", "a3"):
        lost.keeper.authorise(agent)
    lost.keeper.revoke("a2", give_up_unread=False)
    lose(lost)
    assert bring_back(lost, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["agents_revoked"], told["agents_unknown"]) == (["proxy2"], ["a3"])
    database, settings = opened(find_places())
    rows = {row.host_name: row for row in AgentTable(database, SystemClock()).all()}
    assert rows["proxy2"].revoked_at
    assert not rows["proxy1"].revoked_at
    assert int(settings.get(names.WRITERS_NUMBER)) > 3
    database.close()


def test_a_token_of_before_lets_nobody_join(lost: OneController) -> None:
    agents = AgentTable(lost.database, SystemClock())
    agents.add_token(
        token_hash="t",
        role="proxy",
        host_name="h",
        expires_at=SystemClock().now().replace(year=2999),
    )
    lost.copy_now()
    lose(lost)
    assert bring_back(lost) == 0
    database, _ = opened(find_places())
    with pytest.raises(Exception, match="not accepted"):
        join_with(database, "t")
    database.close()


def join_with(database: Database, token: str) -> None:
    new = NewAgent(
        agent_id=AgentId("x"),
        role="proxy",
        host_name="h",
        signing_public_key=bytes(32),
        certificate_serial="8",
        certificate_ends_at="2999-01-01T00:00:00.000000Z",
    )
    AgentTable(database, SystemClock()).join(token, new)


def test_keys_that_were_changed_since_the_copy_are_no_hindrance(lost: OneController) -> None:
    """The copy remembers generation 1; the recovery sheet opens generation 3, which descends from it."""
    from holdfast_common.repository.key_changes import rotate

    lost.keeper.change(rotate)
    lost.keeper.change(rotate)
    lose(lost)
    assert bring_back(lost) == 0


def test_a_repository_that_was_rolled_back_behind_its_copy_is_refused(
    lost: OneController, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Old keys, served together with a new copy: the copy has seen newer ones."""
    from holdfast_common.repository.key_changes import add_recipient
    from holdfast_common.repository.randomness import SYSTEM_RANDOMNESS
    from holdfast_common.repository.recipients import key_file_recipient, new_key_file

    old = {p.name: p.read_bytes() for p in (lost.repository / "keys").iterdir()}
    new = key_file_recipient(new_key_file(SYSTEM_RANDOMNESS), label="other")
    lost.keeper.change(lambda store, keys: add_recipient(store, keys, new, clock=SystemClock()))
    lost.copy_now()
    for path in (lost.repository / "keys").iterdir():
        path.unlink()
    for name, data in old.items():
        (lost.repository / "keys" / name).write_bytes(data)
    lose(lost)
    assert bring_back(lost) == 13
    assert "older than they were" in capsys.readouterr().err
    assert not find_places().controller_configuration.exists()


def test_brought_back_twice_each_has_an_epoch_of_its_own(lost: OneController) -> None:
    lose(lost)
    assert bring_back(lost) == 0
    shutil.rmtree(lost.home)
    assert bring_back(lost) == 0
    database, settings = opened(find_places())
    assert settings.get(names.CONTROLLER_EPOCH) == "3"
    database.close()


def test_the_lost_controller_that_lives_sees_it_and_begins_nothing_more(
    lost: OneController, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost.backup.look()
    lost.keeper.check_alone()
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "second home"))
    assert bring_back(lost) == 0
    lost.backup.look()
    assert "taken this repository over" in lost.settings.get(names.TAKEN_OVER)
    with pytest.raises(Refused, match="another controller"):
        lost.keeper.check_alone()
    with pytest.raises(Refused, match="another controller"):
        lost.keeper.grant(
            Attempt(job_id=JobId("j"), number=1),
            bytes(32),
            controller_epoch=1,
            job_keys=Secret(b""),
        )
    with pytest.raises(Refused, match="another controller"):
        RepositoryCare(lost.world, lost.world.prunes).rebuild(actor="me", dry_run=False)
    with pytest.raises(Refused, match="another controller"):
        Engine(lost.world).start_backup(BackupRequest(selectors=("*",)), dry_run=True)
    with DirectoryStore.open(lost.repository) as store:
        mine = [place for place in stored_copies(store) if place.controller_epoch == 1]
    lost.copy_now()
    with DirectoryStore.open(lost.repository) as store:
        assert [p for p in stored_copies(store) if p.controller_epoch == 1] == mine


def test_a_controller_that_was_set_back_in_time_sees_its_own_later_copies(
    lost: OneController,
) -> None:
    """A virtual machine that was put back to an earlier snapshot of itself."""
    lost.settings.set(names.SELF_BACKUP_NUMBER, "0")
    lost.backup.look()
    assert "taken this repository over" in lost.settings.get(names.TAKEN_OVER)


def test_files_that_anybody_can_put_take_nothing_over(lost: OneController) -> None:
    """Who writes to the storage has no key of the authority."""
    mine = (lost.repository / "controller/0000000001/0000000001").read_bytes()
    for place in ("0000000009/0000000001", "0000000001/0000000099"):
        path = lost.repository / "controller" / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(mine)
    lost.backup.look()
    assert lost.settings.get(names.TAKEN_OVER) == ""


def test_a_copy_that_fails_is_told_and_made_good_later(lost: OneController) -> None:
    moved = lost.repository.rename(lost.repository.with_name("away"))
    lost.copy_now()
    assert lost.settings.get(names.SELF_BACKUP_PROBLEM)
    assert "could not be backed up" in lost.verdict().problem
    moved.rename(lost.repository)
    lost.copy_now()
    assert lost.verdict().problem == ""


def test_a_copy_that_somebody_deleted_is_made_again_within_the_next_round(
    lost: OneController,
) -> None:
    copies = lost.repository / "controller"
    before = {path for path in copies.rglob("*") if path.is_file()}
    assert before
    for path in before:
        path.unlink()
    lost.backup.look()
    assert {path for path in copies.rglob("*") if path.is_file()}
    again = {path for path in copies.rglob("*") if path.is_file()}
    lost.backup.look()
    assert {path for path in copies.rglob("*") if path.is_file()} == again
    assert lost.verdict().problem == ""


def test_an_old_copy_is_told(lost: OneController) -> None:
    lost.settings.set(names.DATABASE_COPIED_AT, "2020-01-01T00:00:00.000000Z")
    assert "is old" in lost.verdict().problem
    assert "2020-01-01" in lost.verdict().problem


def test_only_so_many_copies_stay(lost: OneController) -> None:
    for _ in range(30):
        lost.copy_now()
    with DirectoryStore.open(lost.repository) as store:
        numbers = [place.number for place in stored_copies(store)]
    assert numbers == list(range(8, 32))


class Cut(HoldfastError):
    """Not of the kinds that are handled anywhere: as if it ended here."""

    code = "cut"


def bringing(lost: OneController, home: Path, store: ObjectStore, unlock: Unlock) -> BringingBack:
    places = find_places({HOME_VARIABLE: str(home)})
    places.configuration.mkdir(parents=True, exist_ok=True)
    return BringingBack(places, lost.repository, store, unlock=unlock, clock=SystemClock())


def attempt(lost: OneController, home: Path, fault: Fault, *, unlock: Unlock) -> None:
    """One that is cut off at a call of the storage, and undoes nothing; raises what cut it off."""
    with DirectoryStore.open(lost.repository) as inner:
        faulty = FaultyStore(inner, fault)
        bringing(lost, home, faulty, unlock).carry_out(lambda text: text, sheet_was_typed=True)


def again(home: Path) -> None:
    """As the refusal of a second attempt advises."""
    state = find_places({HOME_VARIABLE: str(home)})
    shutil.rmtree(state.trust, ignore_errors=True)
    for path in state.database.parent.glob(state.database.name + "*"):
        path.unlink()


def lasting_steps(lost: OneController, home: Path, unlock: Unlock) -> list[tuple[int, str]]:
    """The calls that change something, by number: at the others nothing new can have happened."""

    class Listing(FaultyStore):
        def _step(self, what: str) -> bool:
            if what.startswith(("put ", "commit ", "delete ")):
                steps.append((self.calls, what))
            return super()._step(what)

    steps: list[tuple[int, str]] = []
    with DirectoryStore.open(lost.repository) as inner:
        listing = Listing(inner, Fault(call=-1, error=Cut("")))
        bringing(lost, home, listing, unlock).carry_out(lambda text: text, sheet_was_typed=True)
    return steps


def test_wherever_it_is_cut_off_nobody_or_one_works_and_the_next_attempt_ends_it(
    lost: OneController, tmp_path: Path
) -> None:
    """With the lost controller alive beside it, and its own key file as the only secret that anybody has."""
    old_key = next((lost.places.controller_state / "keys").glob("*.key")).read_bytes()
    untouched = tmp_path / "untouched"
    shutil.copytree(lost.repository, untouched)
    unlock = KeyFileUnlock(old_key)
    steps = lasting_steps(lost, tmp_path / "whole", unlock)
    assert steps[0][1].startswith("commit controller/0000000002/"), "the claim comes first"
    assert any(what.startswith("put keys/") for _, what in steps)
    for number, (call, what) in enumerate(steps):
        for reply_lost in (False, True):
            where = f"{what}, {reply_lost=}"
            shutil.rmtree(lost.repository)
            shutil.copytree(untouched, lost.repository)
            home = tmp_path / f"home {number} {reply_lost}"
            fault = Fault(call=call, error=Cut("cut off"), reply_lost=reply_lost, persistent=True)
            with pytest.raises(Cut):
                attempt(lost, home, fault, unlock=unlock)
            places = find_places({HOME_VARIABLE: str(home)})
            assert not places.controller_configuration.exists(), where
            with DirectoryStore.open(lost.repository) as store:
                is_claimed = CopyPlace(controller_epoch=2, number=1) in stored_copies(store)
                generation = newest_generation(lost)
            assert generation == 1 or is_claimed, where
            lost.settings.set(names.TAKEN_OVER, "")
            lost.backup.look()
            assert bool(lost.settings.get(names.TAKEN_OVER)) == is_claimed, where
            again(home)
            key_file = next((places.controller_state / "keys").glob("*.key"), None)
            key = key_file.read_bytes() if generation > 1 and key_file else old_key
            attempt(lost, home, Fault(call=-1, error=Cut("")), unlock=KeyFileUnlock(key))
            assert places.controller_configuration.exists(), where
            with DirectoryStore.open(lost.repository) as store:
                new = open_repository(store, KeyFileUnlock(key_file_of(places).read_bytes()))
                last = copies_by_age(store)[0]
                assert extract_copy(store, last, new, lambda _: None).place.number == 2, where
                with pytest.raises(WrongKey):
                    open_repository(store, KeyFileUnlock(old_key))
            database = open_database(places.database)
            epoch = int(Settings(database).get(names.CONTROLLER_EPOCH))
            database.close()
            assert (epoch, last.controller_epoch) == (epoch, epoch), where
            assert epoch == (3 if is_claimed else 2), where
            is_whole = what.startswith("commit controller/") and number > 0
            assert new.generation == 2 or is_whole, f"no rotation that nobody needs: {where}"


def newest_generation(lost: OneController) -> int:
    return max(int(path.name[:10]) for path in (lost.repository / "keys").glob("0*"))


def key_file_of(places: Places) -> Path:
    return next((places.controller_state / "keys").glob("*.key"))


def test_of_two_that_bring_it_back_at_once_the_later_claim_is_refused_and_changes_no_key(
    lost: OneController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked before either put its claim."""
    unlock = KeyFileUnlock(key_file_of(lost.places).read_bytes())
    whole = Fault(call=-1, error=Cut(""))
    claim = BringingBack._claim

    def claim_later(bringing: BringingBack, database: Database, *more: Any) -> None:
        monkeypatch.setattr(BringingBack, "_claim", claim)
        attempt(lost, tmp_path / "other", whole, unlock=unlock)
        claim(bringing, database, *more)

    monkeypatch.setattr(BringingBack, "_claim", claim_later)
    with pytest.raises(Refused, match="at the same time"):
        attempt(lost, tmp_path / "later", whole, unlock=unlock)
    assert newest_generation(lost) == 2, "the other one's"
    assert not (tmp_path / "later/etc/controller.toml").exists()
    other = find_places({HOME_VARIABLE: str(tmp_path / "other")})
    with DirectoryStore.open(lost.repository) as store:
        assert open_repository(store, KeyFileUnlock(key_file_of(other).read_bytes()))
        assert copies_by_age(store)[0] == CopyPlace(controller_epoch=2, number=2)
