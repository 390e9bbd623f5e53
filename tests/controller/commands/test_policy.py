"""`holdfast policy`, against a controller whose inventory is of a lab."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from holdfast_common.places import HOME_VARIABLE, find_places
from holdfast_controller import main
from holdfast_controller.commands import policy as policy_commands
from holdfast_controller.commands.operator_client import OperatorClient, operators
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.policy_checks import RunLengths
from holdfast_controller.runs.pausing import pause, resume
from holdfast_controller.service.operator_actions import OperatorActions
from holdfast_controller.service.operators import OperatorService
from holdfast_controller.store.policies import PolicyChange, StoredPolicy, UnreadablePolicy
from holdfast_controller.store.runs import RunTable
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import running_lab
from support.one_process import OneProcess, one_process
from support.policies import policy
from support.session_rig import controller_rig

MACHINES = ("db1", "proxy", "web1", "web2")
GOLD = ("create", "gold", "--vms", "web*", "--start", "0 22 * * *")


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneProcess]:
    """A controller with four VMs; one has a disk that no snapshot freezes."""
    folder = tmp_path_factory.mktemp("policies")
    shared = DiskPlan(size_bytes=1 << 20, mode="independent_persistent")
    machines = tuple(
        MachinePlan(name=name, datastore="nfs1", disks=(shared,) if name == "db1" else ())
        for name in MACHINES
    )
    plan = replace(InventoryPlan.empty(), machines=machines)
    with (
        running_lab(folder / "lab", inventory=plan) as lab,
        one_process(folder / "holdfast", lab) as ready,
        ThreadPoolExecutor(4) as threads,
    ):
        actions = OperatorActions(ready.world, ready.engine, None)  # type: ignore[arg-type]  # nobody joins here
        service = OperatorService(actions, threads)
        with controller_rig(folder / "rig", operators=service):
            yield ready


@pytest.fixture(scope="module")
def client(holdfast: OneProcess) -> Iterator[OperatorClient]:
    """One channel for all commands: to open one takes longer than all that a command does."""
    places = find_places({HOME_VARIABLE: str(holdfast.folder.parent / "rig")})
    with operators(places) as opened:
        yield opened


@dataclass
class Told:
    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Told]


@pytest.fixture
def command(
    holdfast: OneProcess,
    client: OperatorClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """`holdfast policy`; there is no policy at its first call."""
    table = holdfast.world.policies
    stored: list[StoredPolicy | UnreadablePolicy] = [*table.policies(), *table.unreadable()]
    gone = [
        PolicyChange(policy=None, policy_id=each.policy_id, revision=each.revision)
        for each in stored
    ]
    table.change(gone, actor="the test before")
    monkeypatch.setattr(policy_commands, "operators", lambda _: nullcontext(client))
    monkeypatch.setenv("LOGNAME", "ann")

    def call(*arguments: str, expect: int = 0) -> Told:
        status = main.run(["policy", *arguments])
        told = Told(status, *capsys.readouterr())
        assert status == expect, told
        return told

    return call


def kept(holdfast: OneProcess) -> list[Policy]:
    return [each.policy for each in holdfast.world.policies.policies()]


def test_a_policy_is_made_of_options_and_told_field_by_field(
    holdfast: OneProcess, command: Command
) -> None:
    told = command(
        *(*GOLD, "--vms", "db1", "--exclude", "web2", "--time-zone", "Europe/Berlin"),
        *("--full-days", "7", "--keep-daily", "14", "--promise", "26h", "--disabled"),
    )
    made = policy(
        vms=("web*", "db1"),
        exclude=("web2",),
        time_zone="Europe/Berlin",
        promise="26h",
        enabled=False,
    )
    made = replace(
        made,
        level=replace(made.level, full_days=7),
        retention=replace(made.retention, keep_daily=14, time_zone="Europe/Berlin"),
    )
    assert kept(holdfast) == [made]
    assert "created gold: 2 VMs" in told.out
    assert "retention.keep_daily = 14" in told.out
    (stored,) = holdfast.world.policies.policies()
    assert stored.changed_by.endswith("(ann)")
    (entry,) = holdfast.world.audit.entries(limit=1)
    assert (entry.action, entry.object, entry.actor) == (
        "policy created",
        "gold",
        stored.changed_by,
    )


def test_a_dry_run_tells_the_same_and_changes_nothing(
    holdfast: OneProcess, command: Command
) -> None:
    dry = command(*GOLD, "--dry-run")
    assert kept(holdfast) == []
    told = command(*GOLD)
    assert dry.out == told.out.replace("created", "would create")
    assert "dry run" in dry.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--start", "0 25 * * *"), "field=start"),
        (("--window", "at night"), "field=window"),
        (("--full", "0 0 30 2 *"), "field=level.full"),
        (("--time-zone", "Mars/Olympus"), "field=time_zone"),
        (("--keep-within", "long"), "field=retention.keep_within"),
        (("--vms", "mail"), "selector=mail"),
        (("--exclude", "mail"), "field=exclude"),
        (("--exclude", "web?"), "every VM that the policy selects is excluded"),
        (("--vms", "tag:gold"), "field=vms"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_field_and_nothing_is_changed(
    holdfast: OneProcess, command: Command, options: tuple[str, ...], said: str
) -> None:
    told = command(*GOLD, *options, expect=2)
    assert said in told.err
    assert kept(holdfast) == []


def test_a_selector_that_names_no_vm_yet_is_taken_when_it_is_allowed(
    holdfast: OneProcess, command: Command
) -> None:
    told = command(*GOLD, "--vms", "mail*", "--allow", "unmatched")
    assert "WARNING  vms: a selector names no VM (selector=mail*)" in told.out
    command("edit", "gold", "--priority", "7")  # what it had before is no reason to refuse it
    assert "a selector names no VM" in command("show", "gold").out
    refused = command("edit", "gold", "--vms", "web1", "--vms", "mall", expect=2)
    assert "selector=mall" in refused.err
    assert [each.priority for each in kept(holdfast)] == [7]


def test_a_name_that_is_taken_is_refused(holdfast: OneProcess, command: Command) -> None:
    command(*GOLD)
    refused = command(*GOLD, "--priority", "1", expect=2)
    assert "has this name already" in refused.err
    assert kept(holdfast) == [policy(vms=("web*",))]


def test_a_window_shorter_than_any_backup_of_a_vm_was_is_refused_with_the_figures(
    holdfast: OneProcess, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (known,) = holdfast.world.vcenters.inventory.select(["web2"])
    took = RunLengths(shortest_seconds=7200.0, longest_seconds=9000.0)
    lengths = {(known.vcenter_id, known.vm.instance_uuid): took}
    monkeypatch.setattr(RunTable, "backup_lengths", lambda *_: lengths)
    window = ("--window", "mon-sun 22:00-23:00")
    refused = command(*GOLD, *window, expect=2)
    for said in ("field=window", "longest_opening=60 min", "vm=web2", "shortest_backup=2.0 h"):
        assert said in refused.err
    assert kept(holdfast) == []
    assert "WARNING" in command(*GOLD, *window, "--allow", "short-window").out
    command("edit", "gold", "--window", "mon-sun 22:00-06:00")
    assert "WARNING" not in command("show", "gold").out


def test_policies_are_listed_with_when_they_are_due_and_what_they_select(
    holdfast: OneProcess, command: Command
) -> None:
    command(*GOLD, "--promise", "26h", "--description", "the webs")
    command("create", "off", "--vms", "*", "--start", "0 1 * * *", "--disabled")
    rows = command("list").out.splitlines()
    assert rows[1].split()[:2] == ["gold", "yes"]
    assert "22:00 UTC  2    26h      the webs" in rows[1]
    assert rows[2].split() == ["off", "no", "4"]
    (gold, off) = command("list", "--json").json()["policies"]
    assert (gold["vms"], gold["promise"], gold["enabled"]) == (2, "26h", True)
    assert (off["enabled"], off["next_due_at"]) == (False, "")


def test_a_policy_is_shown_with_what_it_means_now(holdfast: OneProcess, command: Command) -> None:
    command(
        *("create", "gold", "--vms", "*", "--exclude", "proxy", "--start", "30 22 * * mon"),
        *("--time-zone", "Europe/Berlin", "--window", "mon 22:00-06:00"),
    )
    command("create", "silver", "--vms", "web1", "--start", "0 1 * * *")
    command("create", "bronze", "--vms", "web1", "--start", "0 1 * * *", "--disabled")
    found = command("show", "gold", "--json").json()
    due = found["due"]
    assert isinstance(due, list)
    assert len(due) == 5
    assert all(" 22:30 CE" in each["local"] and each["local"].startswith("Mon") for each in due)
    assert len(found["openings"]) == 3
    vms = {vm["name"]: vm for vm in found["vms"]}
    assert sorted(vms) == ["db1", "web1", "web2"]
    assert [vm["name"] for vm in found["excluded"]] == ["proxy"]
    assert vms["web1"]["other_policies"] == ["silver"]
    assert vms["web2"]["other_policies"] == []
    (left_out,) = vms["db1"]["unprotected"]
    assert "independent" in left_out
    shown = command("show", "gold").out
    assert "VMs       3: db1, web1, web2" in shown
    assert "excluded  1: proxy" in shown
    assert f"LEFT OUT  db1: {left_out}" in shown
    assert "shared    web1 is also in silver" in shown


def test_a_policy_that_is_shown_as_toml_is_applied_as_it_was(
    holdfast: OneProcess, command: Command, tmp_path: Path
) -> None:
    command(*GOLD, "--keep-daily", "7", "--time-zone", "Europe/Berlin")
    before = kept(holdfast)
    path = tmp_path / "gold.toml"
    path.write_text(command("show", "gold", "--toml").out)
    assert "kept as it was gold" in command("apply", str(path)).out
    command("delete", "gold", "--yes")
    command("apply", str(path))
    assert kept(holdfast) == before


FILE = """\
[[policy]]
name = "gold"
vms = ["web*"]
start = "0 22 * * *"
priority = 80

[[policy]]
name = "silver"
vms = ["db1"]
start = "0 23 * * *"
"""


def test_a_file_is_applied_all_at_once_and_tells_what_it_changes(
    holdfast: OneProcess, command: Command, tmp_path: Path
) -> None:
    command(*GOLD)
    command("create", "other", "--vms", "*", "--start", "0 1 * * *")
    path = tmp_path / "policies.toml"
    path.write_text(FILE)
    dry = command("apply", str(path), "--dry-run")
    assert [each.name for each in kept(holdfast)] == ["gold", "other"]
    told = command("apply", str(path))
    assert told.out == dry.out.replace("would change", "changed").replace("would create", "created")
    assert "changed gold: 2 VMs" in told.out
    assert "  priority: 50 -> 80\n" in told.out
    assert "created silver: 1 VMs" in told.out
    assert [(each.name, each.priority) for each in kept(holdfast)] == [
        ("gold", 80),
        ("other", 50),
        ("silver", 50),
    ]
    again = command("apply", str(path), "--json").json()["policies"]
    assert [each["action"] for each in again] == ["keep", "keep"]
    assert [each.revision for each in holdfast.world.policies.policies()] == [2, 1, 1]


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("prioritie = 5\n", "line=11, policy=silver, field=prioritie"),
        ("[policy.level]\nful = 5\n", "line=12, policy=silver, field=level.ful"),
        ("start = 5\n", "line=11, column=10"),
        ('exclude = ["mail"]\n', "line=11, policy=silver, field=exclude, selector=mail"),
        ("priority = 101\n", "line=11, policy=silver, field=priority"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_by_its_line_and_nothing_is_changed(
    holdfast: OneProcess, command: Command, tmp_path: Path, added: str, said: str
) -> None:
    command(*GOLD)
    path = tmp_path / "policies.toml"
    path.write_text(FILE + added)
    refused = command("apply", str(path), expect=2)
    assert all(each in refused.err for each in (f"file={path}", *said.split(", ")))
    assert kept(holdfast) == [policy(vms=("web*",))]


def test_all_that_is_wrong_in_a_file_is_told_together(
    holdfast: OneProcess, command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "policies.toml"
    path.write_text(FILE.replace("web*", "mail").replace("db1", "mall"))
    refused = command("apply", str(path), expect=2)
    for said in ("selector=mail", "line=3", "selector=mall", "line=9", "also: "):
        assert said in refused.err
    assert kept(holdfast) == []


def test_a_text_is_applied_from_standard_input(
    holdfast: OneProcess, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"\xef\xbb\xbf" + FILE.replace("\n", "\r\n").encode()  # as Windows writes it
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    command("apply", "-")
    assert [each.name for each in kept(holdfast)] == ["gold", "silver"]


def test_a_file_that_is_not_there_or_no_text_is_told(command: Command, tmp_path: Path) -> None:
    assert "cannot be read" in command("apply", str(tmp_path / "nosuch"), expect=2).err
    assert "cannot be read" in command("apply", str(tmp_path), expect=2).err
    path = tmp_path / "latin.toml"
    path.write_bytes(FILE.encode() + b"# \xe4\n")
    assert "line=11" in command("apply", str(path), expect=2).err


def test_single_fields_are_changed_by_options(holdfast: OneProcess, command: Command) -> None:
    command(*GOLD, "--exclude", "web2", "--window", "mon 22:00-06:00", "--keep-daily", "7")
    told = command("edit", "gold", "--exclude", "", "--window", "", "--time-zone", "Europe/Berlin")
    assert '  exclude: ["web2"] -> []\n' in told.out
    (changed,) = kept(holdfast)
    assert (changed.exclude, changed.window, changed.time_zone) == ((), "", "Europe/Berlin")
    assert changed.retention.time_zone == "Europe/Berlin"
    assert changed.retention.keep_daily == 7
    command("edit", "gold", "--rename", "platinum", "--disabled")
    (renamed,) = holdfast.world.policies.policies()
    assert (renamed.policy.name, renamed.policy.enabled, renamed.revision) == ("platinum", False, 3)


def editor(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> Path:
    """An editor that runs these lines of shell, with the file as ``$1``; what it saw is kept."""
    path = folder / "editor"
    seen = folder / "seen"
    path.write_text("\n".join(["#!/bin/sh", f'cp "$1" {seen}', *lines]) + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("EDITOR", str(path))
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    (folder / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder / "tmp"))
    return seen


def test_a_policy_is_changed_in_the_editor(
    holdfast: OneProcess, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(*GOLD)
    seen = editor(tmp_path, monkeypatch, 'sed -i \'s/^# promise.*/promise = "2d"/\' "$1"')
    assert '  promise: "" -> "2d"' in command("edit", "gold").out
    assert kept(holdfast) == [policy(vms=("web*",), promise="2d")]
    assert '# window = "' in seen.read_text()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_text_that_was_edited_for_a_dry_run_stays_and_can_be_applied(
    holdfast: OneProcess, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(*GOLD)
    editor(tmp_path, monkeypatch, "sed -i 's/^priority.*/priority = 7/' \"$1\"")
    told = command("edit", "gold", "--dry-run")
    (left,) = (tmp_path / "tmp").iterdir()
    assert "priority: 50 -> 7" in told.out
    assert f"the text is kept in {left}" in told.err
    assert kept(holdfast) == [policy(vms=("web*",))]
    command("apply", str(left))
    assert kept(holdfast) == [policy(vms=("web*",), priority=7)]


@pytest.mark.parametrize("edited", ["", ': > "$1"'])
def test_an_editor_that_leaves_the_text_or_nothing_changes_nothing(
    holdfast: OneProcess,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    edited: str,
) -> None:
    command(*GOLD)
    editor(tmp_path, monkeypatch, edited)
    assert "nothing was changed" in command("edit", "gold").err
    assert [each.revision for each in holdfast.world.policies.policies()] == [1]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        ("echo 'whenever = 1' >> \"$1\"", "field=retention.whenever"),
        ("echo 'vms = [' > \"$1\"", "this is not TOML"),
        ("echo '[[policy]]' >> \"$1\"", "policy=number 2"),
        ("exit 3", "Editing failed"),
    ],
)
def test_a_wrong_text_changes_nothing_and_is_not_lost(
    holdfast: OneProcess,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    edited: str,
    said: str,
) -> None:
    command(*GOLD)
    editor(tmp_path, monkeypatch, edited)
    refused = command("edit", "gold", expect=2)
    (left,) = (tmp_path / "tmp").iterdir()
    assert said in refused.err
    assert f"the text is kept in {left}" in refused.err
    assert kept(holdfast) == [policy(vms=("web*",))]


def test_what_somebody_else_changed_meanwhile_is_not_overwritten(
    holdfast: OneProcess, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(*GOLD)
    (stored,) = holdfast.world.policies.policies()
    editor(tmp_path, monkeypatch, "sed -i 's/^priority.*/priority = 1/' \"$1\"")
    changed = policy(vms=("web*",), priority=99)

    def edit_meanwhile(**_: object) -> None:
        holdfast.world.policies.replace(stored.policy_id, changed, revision=1, actor="ben")
        path = next((tmp_path / "tmp").iterdir())
        path.write_text(path.read_text().replace("priority = 50", "priority = 1"))

    monkeypatch.setattr("click.edit", edit_meanwhile)
    refused = command("edit", "gold", expect=15)
    assert "changed meanwhile" in refused.err
    assert kept(holdfast) == [changed]


def test_a_policy_is_deleted_when_that_is_confirmed(
    holdfast: OneProcess, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(*GOLD)
    command("create", "one", "--vms", "web1", "--start", "0 1 * * *")
    command("create", "off", "--vms", "*", "--start", "0 1 * * *", "--disabled")
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    asked = command("delete", "gold", expect=130)
    assert "no policy covers then: 1 VMs: web2" in asked.err
    dry = command("delete", "gold", "--dry-run")
    assert "would delete gold" in dry.out
    assert [each.name for each in kept(holdfast)] == ["gold", "off", "one"]
    assert "no policy covers then" not in command("delete", "off", "--yes").out
    assert "deleted gold" in command("delete", "gold", "--yes").out
    assert [each.name for each in kept(holdfast)] == ["one"]
    assert "there is no such policy" in command("delete", "gold", "--yes", expect=1).err


def test_vms_that_lose_their_last_policy_by_a_change_are_named(
    holdfast: OneProcess, command: Command
) -> None:
    command(*GOLD)
    command("create", "one", "--vms", "web1", "--start", "0 1 * * *")
    dry = command("edit", "gold", "--disabled", "--dry-run")
    assert "no policy covers then: 1 VMs: web2" in dry.out
    narrowed = command("edit", "gold", "--vms", "web1", "--vms", "db1", "--json").json()
    assert narrowed["uncovered"] == ["web2"]
    assert command("edit", "gold", "--vms", "web*", "--json").json()["uncovered"] == ["db1"]
    assert command("edit", "one", "--disabled", "--json").json()["uncovered"] == []


def test_a_policy_that_cannot_be_read_is_listed_given_anew_or_deleted(
    holdfast: OneProcess, command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "policies.toml"
    path.write_text(FILE)
    command("apply", str(path))
    database = holdfast.world.policies._database
    database.execute("UPDATE policies SET content = replace(content, '0 2', '0 99 2')")
    assert "a calendar has five fields" in command("list").out
    assert "cannot be read" in command("show", "gold", expect=2).err
    command("delete", "silver", "--yes")
    command("apply", str(path))
    assert [each.name for each in kept(holdfast)] == ["gold", "silver"]


def test_what_does_not_exist_is_not_found(command: Command) -> None:
    for arguments in (("show", "gold"), ("edit", "gold", "--priority", "1"), ("show", "../x")):
        assert "there is no such policy" in command(*arguments, expect=1).err


def test_a_policy_is_run_by_hand_as_a_dry_run_and_refused_while_everything_is_paused(
    holdfast: OneProcess, command: Command
) -> None:
    command("create", "gold", "--vms", "db*", "--start", "0 0 29 2 *", "--allow", "unmatched")
    planned = command("run", "gold", "--dry-run", "--level", "full", "--json").json()
    assert planned["plan"][0].startswith("db1: full, as asked")
    assert planned["run_id"] == ""
    pause(holdfast.world, holdfast.engine, actor="anna", reason="firmware")
    try:
        told = command("run", "gold", "--detach", expect=15).err
    finally:
        resume(holdfast.world, holdfast.engine, actor="anna")
    assert "firmware" in told
    assert "holdfast resume" in told
    assert "there is no such policy" in command("run", "nosuch", expect=1).err
