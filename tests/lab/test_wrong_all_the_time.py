"""What is wrong in a lab until somebody puts it right: rights, clock, certificate, versions, mounts."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from pyVmomi import vim

from holdfast_lab.server import RunningLab
from support.lab_vsphere import client_of

MAKES = "VirtualMachine.State.CreateSnapshot"


def test_an_open_session_loses_a_right_at_once(lab: RunningLab) -> None:
    with client_of(lab) as client:
        manager: Any = client.content.authorizationManager
        key = client.content.sessionManager.currentSession.key

        def may() -> bool:
            asked = manager.HasPrivilegeOnEntities([client.vm()], key, [MAKES])
            return bool(asked[0].privAvailability[0].isGranted)

        assert may()
        lab.control.call("user-add", name=lab.user, password=lab.password, privileges=[])
        assert not may()
        lab.control.call("user-add", name=lab.user, password=lab.password)
        assert may()


def test_the_servers_clock_may_be_wrong(lab: RunningLab) -> None:
    lab.control.call("settings", clock_ahead_seconds=900)
    with client_of(lab) as client:
        ahead = client.instance.CurrentTime() - datetime.now(UTC)
    assert timedelta(seconds=850) < ahead < timedelta(seconds=950)


def test_a_certificate_may_end_soon(lab: RunningLab) -> None:
    before = lab.control.call("describe")["certificate_sha256"]
    assert lab.control.call("certificate-change", days=2) != before
    pem = Path(lab.state / "certificate.pem").read_bytes()
    left = x509.load_pem_x509_certificate(pem).not_valid_after_utc - datetime.now(UTC)
    assert left < timedelta(days=3)


def test_hosts_and_vms_may_be_old_and_see_little(lab: RunningLab) -> None:
    lab.control.call("vm-hardware", vm="web", version="vmx-04")
    lab.control.call("host-build", host="esx1.lab", build="1", version="6.0.0")
    lab.control.call("host-connected", host="esx2.lab", connected=False)
    lab.control.call("datastore-mount", name="nfs2", hosts=["esx1.lab"])
    with client_of(lab) as client:
        assert client.vm().config.version == "vmx-04"
        assert client.entity(vim.HostSystem, "esx1.lab").config.product.version == "6.0.0"
        away = client.entity(vim.HostSystem, "esx2.lab")
        assert away.runtime.connectionState == "disconnected"
        assert "nfs2" not in {store.name for store in away.datastore}
        lab.control.call("datastore-mount", name="nfs2")
        assert "nfs2" in {store.name for store in away.datastore}
