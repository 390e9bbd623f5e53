"""What this agent can reach, as it tells the controller. Nothing is tried here, only looked at."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from holdfast_agent.configuration import AgentConfiguration
from holdfast_common.identity import DatastoreId, RepositoryId
from holdfast_common.job_spec import TransportKind
from holdfast_common.own_host import mac_addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreReach:
    """A datastore that is mounted here."""

    datastore_id: DatastoreId
    writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Everything of one moment. ``vm_bios_uuid`` is empty when this host is no VM of ours, or nobody said which."""

    transports: tuple[TransportKind, ...]
    datastores: tuple[DatastoreReach, ...]
    repositories: tuple[RepositoryId, ...]
    restore_folders: tuple[str, ...]
    repair_folders: tuple[str, ...]
    vm_bios_uuid: str
    host_name: str
    version: str
    mac_addresses: tuple[str, ...] = ()


def reach_of(configuration: AgentConfiguration) -> Reach:
    """What the configuration allows and this host has now. A datastore that is not there is left out."""
    datastores = tuple(
        DatastoreReach(
            datastore_id=DatastoreId(datastore_id),
            writable=os.access(path, os.W_OK | os.X_OK),
        )
        for datastore_id, path in sorted(configuration.datastores.items())
        if os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK)  # noqa: PTH112 - a path that cannot be asked is simply not there
    )
    transports = [TransportKind.NFC]
    if datastores:
        transports.append(TransportKind.DIRECT)
    if configuration.hot_add.vm_bios_uuid:
        transports.append(TransportKind.HOTADD)
    if configuration.restore.folders:
        transports.append(TransportKind.FILE)
    return Reach(
        transports=tuple(sorted(transports)),
        datastores=datastores,
        repositories=tuple(RepositoryId(found) for found in sorted(configuration.repositories)),
        restore_folders=configuration.restore.folders,
        repair_folders=configuration.repair.folders,
        vm_bios_uuid=configuration.hot_add.vm_bios_uuid,
        host_name=host_name(),
        version=program_version(),
        mac_addresses=mac_addresses(),
    )


def host_name() -> str:
    """This host's name, as a join token must have it."""
    return socket.gethostname().lower()


def program_version() -> str:
    """The version of this program."""
    try:
        return version("holdfast-agent")
    except PackageNotFoundError:
        return "0"
