"""A proxy that does not let a disk go: the point stands, the snapshot waits, and both are visible debts."""

from pathlib import Path

from support.installation import whole_installation
from support.waiting import wait_until


def test_rule_15_a_disk_that_stays_attached_is_a_debt_that_keeps_its_snapshot_and_its_vm(
    tmp_path: Path,
) -> None:
    with whole_installation(tmp_path) as holdfast:
        holdfast.lab(
            "misbehave",
            "arm",
            "fail_task",
            "--match",
            "description=*econfig*",
            "--match",
            "vm=proxy",
            "--nth",
            "2",
            "--times",
            "0",
            "--set",
            "fault=GenericVmConfigFault",
        )
        done = holdfast.holdfast("backup", "web", "--transport", "hotadd", "--json", expect=3)
        assert "left_behind" in done.stdout
        assert len(holdfast.points("web")) == 1, "the data is in the repository"
        assert len(holdfast.attached_to_proxy()) == 1
        assert len(holdfast.own_snapshots("web")) == 1, "never removed below an attached disk"
        debts = holdfast.run("holdfast", "status").text
        assert "hot_add" in debts
        assert "snapshot" in debts
        refused = holdfast.holdfast("backup", "web", expect=15)
        assert "could not be given back" in refused.text
        holdfast.lab("misbehave", "disarm")
        wait_until(
            lambda: not holdfast.own_snapshots("web") and not holdfast.attached_to_proxy(),
            what="both are given back by the reconciler",
        )
        holdfast.holdfast("backup", "web", "--transport", "hotadd")
