"""ImportVApp: a new VM whose disks are filled through a transfer lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyVmomi import vim

from holdfast_lab.disk_devices import DEVICE_ADD
from holdfast_lab.faults import SoapFault, invalid_argument
from holdfast_lab.hosts import ResourcePool
from holdfast_lab.inventory import Datacenter, Folder
from holdfast_lab.lab_object import escaped_name
from holdfast_lab.machine_life import chosen_host, create_machine, destroy_machine
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.reconfigure import given_name
from holdfast_lab.transfer_lease import LeasedFile, TransferLease, files_of, nvram_file, run_lease
from holdfast_lab.wire_types import WireObject

if TYPE_CHECKING:
    from holdfast_lab.machine import Machine

NVRAM_OPTION = "nvram"  # an extraConfig value of "ovf:/file/..." asks for its upload


@soap_method("ImportVApp")
def import_machine(call: Call) -> WireObject:
    """Make a VM and lease its disks for writing; aborting the lease removes it again."""
    lab = call.lab
    pool = lab.get(call.this, ResourcePool)
    spec = call.arguments.required("spec", vim.ImportSpec)
    if not isinstance(spec, vim.vm.VmImportSpec) or spec.configSpec is None:
        raise invalid_argument("spec", "only single virtual machines can be imported")
    config = spec.configSpec
    name = given_name(str(config.name or ""))
    folder = _folder(call)
    folder.check_name_is_free(name)
    host = chosen_host(call, pool)
    _check_disks_are_new(config)
    if config.files is None or not config.files.vmPathName:
        raise invalid_argument("spec.configSpec.files.vmPathName")
    lease = TransferLease(lab, lab.new_id("lease"), machine=None, direction="import")
    lab.add(lease)

    def prepare() -> None:
        wants_nvram = _take_nvram_option(config)
        machine = create_machine(folder, config, pool=pool, host=host)
        files = _files(machine, name, wants_nvram=wants_nvram)
        try:
            with lab.lock:
                lease.become_ready(files, machine=machine)
        except SoapFault:
            destroy_machine(machine)
            raise

    run_lease(lease, folder, "ResourcePool.importVApp", prepare, session=call.session)
    return lease.ref


def _files(machine: Machine, name: str, *, wants_nvram: bool) -> list[LeasedFile]:
    files = files_of(machine, machine.devices, name=escaped_name(name))
    if wants_nvram:
        files.append(nvram_file(machine, name=name))
    return files


def _folder(call: Call) -> Folder:
    wanted = call.arguments.optional("folder", vim.Folder)
    if wanted is not None:
        return call.lab.get(wanted, Folder)
    return call.lab.every(Datacenter)[0].vm_folder


def _check_disks_are_new(config: WireObject) -> None:
    """A lease cannot write into disks that are there already. Raises: SoapFault."""
    for index, change in enumerate(config.deviceChange):
        if not isinstance(change.device, vim.vm.device.VirtualDisk):
            continue
        if change.operation != DEVICE_ADD or change.fileOperation != "create":
            raise SoapFault(
                vim.fault.InvalidDeviceSpec(
                    property=f"configSpec.deviceChange[{index}]", deviceIndex=index
                ),
                f"Invalid configuration for device '{index}': an import makes its disks anew.",
            )


def _take_nvram_option(config: WireObject) -> bool:
    for option in list(config.extraConfig):
        if option.key == NVRAM_OPTION and str(option.value or "").startswith("ovf:"):
            config.extraConfig.remove(option)
            return True
    return False
