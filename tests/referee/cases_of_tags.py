"""Cases of tags, which are read over REST: see `case_table`."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

from holdfast_common.errors import AuthenticationFailed, CapabilityAbsent, CertificateMismatch
from holdfast_common.logs import Secret
from holdfast_controller.vsphere import inventory, tags
from holdfast_controller.vsphere.pinning import pinned_connection
from holdfast_controller.vsphere.session import Account, VsphereSession
from referee.case_table import Simulator, SimulatorsFault, case, expected

REST_CALLS = (
    "REST login",
    "REST POST cis/tagging/tag-association",
    "REST GET cis/tagging/tag",
    "REST GET cis/tagging/category",
    "REST logout",
)


class Administrator:
    """Makes tags in the simulator over REST, without the product."""

    def __init__(self, simulator: Simulator) -> None:
        address, account = simulator.address, simulator.account
        self._connection = pinned_connection(
            address.host,
            address.port,
            certificate_sha256=address.certificate_sha256,
            timeout_seconds=30.0,
        )
        secret = f"{account.user_name}:{account.password.reveal().decode()}".encode()
        self._headers = {"Authorization": "Basic " + base64.b64encode(secret).decode()}
        identifier = self.post("session", None)
        self._headers = {"vmware-api-session-id": identifier}

    def post(self, path: str, body: Any) -> Any:
        """One request below ``cis/``; its value."""
        data = None if body is None else json.dumps(body)
        where = f"/rest/com/vmware/cis/{path}"
        self._connection.request("POST", where, body=data, headers=self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        assert answer.status == 200, f"{path}: {answer.status} {text[:200]!r}"
        return json.loads(text)["value"] if text.strip() else None

    def tag(self, name: str, category: str, *morefs: str) -> None:
        """Make a tag in a category of its own and attach it to VMs."""
        spec = {"name": category, "description": "", "cardinality": "MULTIPLE"}
        category_id = self.post(
            "tagging/category", {"create_spec": {**spec, "associable_types": []}}
        )
        tag_spec = {"name": name, "description": "", "category_id": category_id}
        tag_id = self.post("tagging/tag", {"create_spec": tag_spec})
        for moref in morefs:
            self.post(
                f"tagging/tag-association/id:{tag_id}?~action=attach",
                {"object_id": {"type": "VirtualMachine", "id": moref}},
            )


@case(*REST_CALLS)
def tags_of_vms(simulator: Simulator) -> None:
    """The tags of all VMs, behind the pinned certificate; a wrong password is refused."""
    vms = [vm.moref for vm in inventory.read_inventory(simulator.session).vms]
    if simulator.single_host:
        with expected(CapabilityAbsent):
            tags.read_vm_tags(simulator.session, vms)
        return
    administrator = Administrator(simulator)
    administrator.tag("gold", "Backup", vms[0], vms[-1])
    administrator.tag("gold", "Tier", vms[0])
    found = tags.read_vm_tags(simulator.session, vms).vms
    assert len(found) == simulator.machines
    assert [each.text for each in found[vms[0]]] == ["Backup/gold", "Tier/gold"]
    assert [each.text for each in found[vms[-1]]] == ["Backup/gold"]
    assert not any(found[moref] for moref in vms[1:-1])
    with VsphereSession(simulator.address, simulator.account) as session:
        session.address = replace(session.address, certificate_sha256="0" * 64)
        with expected(CertificateMismatch):
            tags.read_vm_tags(session, vms[:1])
        session.address = simulator.address
        session.account = Account(user_name=simulator.account.user_name, password=Secret(b"wrong"))
        try:
            tags.read_vm_tags(session, vms[:1])
        except AuthenticationFailed:
            return
        finally:
            session.account = simulator.account
    raise SimulatorsFault("an older simulator takes any password over REST")
