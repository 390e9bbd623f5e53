"""An agent offers what its configuration allows and its host has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast_agent.capabilities import DatastoreReach, reach_of
from holdfast_agent.configuration import (
    AgentConfiguration,
    HotAddConfiguration,
    RepairConfiguration,
    RestoreConfiguration,
)
from holdfast_agent.session_messages import hello_message
from holdfast_common.job_spec import TransportKind


def test_an_agent_without_anything_offers_nfc() -> None:
    reach = reach_of(AgentConfiguration(controller="c:1"))
    assert reach.transports == (TransportKind.NFC,)
    assert reach.version
    assert reach.host_name == reach.host_name.lower()


def test_everything_that_is_configured_and_there_is_offered(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    reach = reach_of(
        AgentConfiguration(
            controller="c:1",
            repositories={"r": "/r"},
            datastores={"ds:///one/": str(tmp_path / "one"), "ds:///gone/": str(tmp_path / "gone")},
            hot_add=HotAddConfiguration(vm_bios_uuid="4215"),
            restore=RestoreConfiguration(folders=("/srv",)),
            repair=RepairConfiguration(folders=("/copies",)),
        )
    )
    assert set(reach.transports) == set(TransportKind)
    assert reach.datastores == (DatastoreReach(datastore_id="ds:///one/", writable=True),)  # type: ignore[arg-type]  # an id in a test
    assert reach.repositories == ("r",)
    assert (reach.vm_bios_uuid, reach.restore_folders) == ("4215", ("/srv",))
    assert reach.repair_folders == ("/copies",)
    hello = hello_message(boot_id="b", role="proxy", reach=reach, running=(), results=()).hello
    assert list(hello.capabilities.repair_folders) == ["/copies"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; run as an ordinary user")
def test_a_datastore_that_is_mounted_read_only_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    reach = reach_of(AgentConfiguration(controller="c:1", datastores={"d": str(tmp_path)}))
    tmp_path.chmod(0o700)
    assert [found.writable for found in reach.datastores] == [False]
