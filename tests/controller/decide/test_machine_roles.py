from dataclasses import replace

from holdfast_controller.decide.machine_roles import (
    HostIdentity,
    MachineRole,
    OwnMachines,
    OwnVms,
    unquiesced_reason,
)
from support.vm_facts import VM

UUID = "42150a0b-0c0d-0e0f-1011-121314151617"
SWAPPED = "0b0a1542-0d0c-0f0e-1011-121314151617"
OWN = OwnMachines(
    controller=HostIdentity(name="controller", uuid=UUID, mac_addresses=("00:50:56:00:00:01",)),
    proxies=(
        HostIdentity(name="proxy1", mac_addresses=("00:50:56:00:00:02",)),
        HostIdentity(name="proxy2"),
    ),
    vcenters=(
        HostIdentity(
            name="main",
            addresses=("192.0.2.10", "fe80::1"),
            host_names=("vcsa.example.org",),
        ),
        HostIdentity(name="short", addresses=("192.0.2.11",), host_names=("vcsa", "192.0.2.11")),
    ),
)


def roles(**changes: object) -> list[tuple[MachineRole, str]]:
    vm = replace(VM, **changes)  # type: ignore[arg-type]  # a test's shorthand
    return [(each.role, each.name) for each in OwnVms(OWN).roles(vm)]


def test_most_vms_are_nobody_of_ours() -> None:
    assert roles() == []
    assert roles(bios_uuid="", instance_uuid="", guest_host_name="", mac_addresses=()) == []


def test_the_controllers_vm_is_known_by_its_card_and_by_its_uuid_in_either_order_of_bytes() -> None:
    own = [(MachineRole.CONTROLLER, "controller")]
    assert roles(mac_addresses=("00:50:56:00:00:01",)) == own
    assert roles(bios_uuid=UUID.upper()) == own
    assert roles(bios_uuid=SWAPPED) == own
    assert roles(instance_uuid=UUID) == own
    assert roles(bios_uuid=UUID.replace("17", "18")) == []


def test_a_proxys_vm_is_known_by_its_card() -> None:
    assert roles(mac_addresses=("00:50:56:00:00:02",)) == [(MachineRole.PROXY, "proxy1")]


def test_a_vcenters_vm_is_known_by_what_its_guest_tells() -> None:
    main = [(MachineRole.VCENTER, "main")]
    assert roles(guest_addresses=("198.51.100.1", "192.0.2.10")) == main
    assert roles(guest_host_name="VCSA.example.org.") == main


def test_what_many_hosts_share_proves_nothing() -> None:
    assert roles(guest_addresses=("fe80::1",)) == []
    assert roles(guest_host_name="vcsa") == []
    assert roles(guest_host_name="192.0.2.11") == []
    assert roles(guest_addresses=("nonsense", "0.0.0.0")) == []


def test_one_vm_may_be_several_and_each_is_told_once() -> None:
    found = roles(
        mac_addresses=("00:50:56:00:00:01", "00:50:56:00:00:02"),
        bios_uuid=UUID,
        guest_addresses=("192.0.2.10",),
    )
    assert found == [
        (MachineRole.CONTROLLER, "controller"),
        (MachineRole.PROXY, "proxy1"),
        (MachineRole.VCENTER, "main"),
    ]


def test_the_controller_and_a_vcenter_are_not_quiesced_and_a_proxy_is() -> None:
    own = OwnVms(OWN)
    controller = unquiesced_reason(own.roles(replace(VM, bios_uuid=UUID)))
    assert controller.startswith("it is the VM that this controller runs in (its uuid")
    assert "without quiescing" in controller
    vcenter = unquiesced_reason(own.roles(replace(VM, guest_addresses=("192.0.2.10",))))
    assert "the VM of vcenter main (its address 192.0.2.10)" in vcenter
    assert not unquiesced_reason(own.roles(replace(VM, mac_addresses=("00:50:56:00:00:02",))))
