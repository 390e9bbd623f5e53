"""A home and a repository of the first release, in the hands of today's controller, agent and commands."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask

from support.installation import FAST, Installation, lasting_port

RELEASES = Path(__file__).parents[1] / "support" / "releases"
UNIT = 64 * 1024


@pytest.fixture
def earlier(tmp_path: Path) -> Iterator[Installation]:
    """As that release left it, moved to this folder; the lab knows the VM again."""
    folder = tmp_path / "earlier"
    with tarfile.open(RELEASES / "main-job-with-lab.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    installation = Installation(
        folder,
        lab_arguments=("--inventory", "empty"),
        program_prefix={"holdfast-lab": [sys.executable, "-m", "support.earlier_lab"]},
        extra_environment={"EARLIER_LAB": str(folder / "earlier-lab" / "lab.json")},
    )
    database = sqlite3.connect(folder / "home" / "lib" / "controller" / "controller.sqlite")
    with database:
        database.execute(
            "UPDATE settings SET value = ? WHERE name = 'repository.folder'",
            (str(installation.repository),),
        )
    database.close()
    installation.configure(
        **FAST,
        session_address=f"127.0.0.1:{lasting_port()}",
        enrolment_address=f"127.0.0.1:{lasting_port()}",
    )
    try:
        facts = installation.start_lab()
        store = Path(facts["datastores"]["nfs1"]["path"])
        shutil.copytree(folder / "earlier-lab" / "small", store / "small")
        register(facts)
        yield installation
    finally:
        installation.stop()


def register(facts: dict[str, Any]) -> None:
    """Have the lab know the VM from its files."""
    host, port = facts["address"].split(":")
    client = SmartConnect(
        host=host,
        port=int(port),
        user=facts["user"],
        pwd=facts["password"],
        disableSslCertValidation=True,
    )
    (datacenter,) = client.content.rootFolder.childEntity
    compute = datacenter.hostFolder.childEntity[0]
    WaitForTask(
        datacenter.vmFolder.RegisterVM_Task(
            path="[nfs1] small/small.vmx",
            name="small",
            asTemplate=False,
            pool=compute.resourcePool,
            host=compute.host[0],
        )
    )
    Disconnect(client)


def restored(installation: Installation, point_id: str) -> bytes:
    target = installation.restores / f"{point_id}-{len(list(installation.restores.iterdir()))}.vmdk"
    installation.holdfast("restore", point_id, "disk", "0", "--to", str(target))
    raw = installation.folder / "restored.raw"
    subprocess.run(
        ["qemu-img", "convert", "-O", "raw", str(target), str(raw)], check=True, timeout=60
    )
    return raw.read_bytes()


def test_the_first_releases_home_goes_on_incrementally_with_todays_programs(
    earlier: Installation,
) -> None:
    flat = Path(earlier.lab_facts()["datastores"]["nfs1"]["path"]) / "small" / "small-flat.vmdk"
    old = flat.read_bytes()
    earlier.start_controller()
    (first,) = earlier.points("small")
    assert first["level"] == "full"
    assert "is known" in earlier.add_vcenter().stderr  # at another address now
    earlier.enrol_agent(hot_add=False)
    earlier.start_agent()
    earlier.control(
        "guest-write", vm="small", disk=0, offset=5 * UNIT, count=1, block_bytes=UNIT, seed=9
    )
    new = flat.read_bytes()
    assert new != old
    earlier.holdfast("backup", "small")
    second, again = earlier.points("small")
    assert again["point_id"] == first["point_id"]
    assert (second["level"], second["level_reason"]) == (
        "incremental",
        "changes since the previous point",
    )
    assert second["lineage_id"] == first["lineage_id"]
    assert 0 < int(second["read_bytes"]) <= 2 * UNIT < int(first["read_bytes"])
    assert restored(earlier, first["point_id"]) == old
    assert restored(earlier, second["point_id"]) == new
    earlier.holdfast("repo", "check", "--read-data")
    # what that release wrote can also be forgotten and pruned
    earlier.holdfast("repo", "forget", first["point_id"], "--yes")
    pruned = earlier.holdfast("repo", "prune", "--grace-minutes", "0", "--accept-clock", "--json")
    earlier.holdfast("repo", "prune", "--grace-minutes", "0", "--accept-clock")
    assert '"doomed": 0,' not in pruned.stdout
    assert [point["point_id"] for point in earlier.points("small")] == [second["point_id"]]
    assert restored(earlier, second["point_id"]) == new
    earlier.holdfast("repo", "check", "--read-data")
