"""``agent.toml``: what the administrator lets this agent reach. Unknown keys are refused.

controller = "controller.example:9440"
role = "proxy"

[repositories]                      # repository id = folder
[datastores]                        # datastore id (its URL) = folder where it is mounted
[hot_add]
vm_bios_uuid = "4215…"              # this proxy's own VM; empty: hot-add is not offered
device_folder = ""                  # where attached disks appear by name; empty: Linux SCSI devices
[restore]
folders = ["/srv/restores"]         # where single disks may be restored to as files
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from holdfast_common.errors import ConfigurationError


class HotAddConfiguration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The proxy's own VM, and where disks attached to it appear."""

    vm_bios_uuid: str = ""
    device_folder: str = ""


class RestoreConfiguration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Folders below which single disks may be restored."""

    folders: tuple[str, ...] = ()


class AgentConfiguration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    controller: str
    agent_id: str = ""
    role: str = "proxy"
    repositories: dict[str, str] = {}
    datastores: dict[str, str] = {}
    hot_add: HotAddConfiguration = HotAddConfiguration()
    restore: RestoreConfiguration = RestoreConfiguration()


def read_configuration(path: Path) -> AgentConfiguration:
    """Raises: ConfigurationError naming the file and the field."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=AgentConfiguration)
    except FileNotFoundError as error:
        raise ConfigurationError(
            "the agent has no configuration", file=str(path), advice="run `holdfast-agent enrol`"
        ) from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"the agent's configuration is wrong: {error}", file=str(path)
        ) from error


def configuration_text(configuration: AgentConfiguration) -> str:
    """The file's text, for `enrol`."""
    plain: Any = msgspec.to_builtins(configuration)
    return msgspec.toml.encode(plain).decode()
