"""How a method of the lab says no: one exception that carries a vSphere fault."""

from __future__ import annotations

from pyVmomi import vim, vmodl

from holdfast_lab.errors import ConnectionCut, LabError

__all__ = [
    "ConnectionCut",
    "LabError",
    "SoapFault",
    "file_not_found",
    "invalid_argument",
    "invalid_datastore_path",
    "not_supported",
]


class SoapFault(LabError):
    """Ends a method call or a task with ``fault``, which the client sees."""

    def __init__(self, fault: vmodl.MethodFault, message: str = "") -> None:
        self.fault = fault
        self.message = message or getattr(fault, "msg", "") or type(fault).__name__.split(".")[-1]
        super().__init__(self.message)

    @property
    def name(self) -> str:
        """The fault's name on the wire, such as ``NotAuthenticated``."""
        return str(self.fault._wsdlName)


def invalid_argument(name: str, message: str = "") -> SoapFault:
    """The fault for an argument that cannot be used."""
    return SoapFault(
        vmodl.fault.InvalidArgument(invalidProperty=name), message or f"invalid argument: {name}"
    )


def file_not_found(path: str) -> SoapFault:
    """The fault for a file that is not on its datastore."""
    return SoapFault(vim.fault.FileNotFound(file=path), f"file {path} was not found")


def not_supported(message: str) -> SoapFault:
    """The fault for something this vSphere does not do."""
    return SoapFault(vmodl.fault.NotSupported(), message)


def invalid_datastore_path(path: str) -> SoapFault:
    """The fault for a path that names no place on a datastore that is there."""
    return SoapFault(
        vim.fault.InvalidDatastorePath(datastorePath=path), f"Invalid datastore path '{path}'."
    )
