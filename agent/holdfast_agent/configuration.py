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
[repair]
folders = ["/mnt/second-copy"]      # copies of repositories that a repair may read
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from holdfast_common.errors import ConfigurationError, UsageError

SESSION_PORT: Final = 9440  # of controllers, unless they say another


class HotAddConfiguration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The proxy's own VM, and where disks attached to it appear."""

    vm_bios_uuid: str = ""
    device_folder: str = ""


class RestoreConfiguration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Folders below which single disks may be restored."""

    folders: tuple[str, ...] = ()


class RepairConfiguration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``folders``: where copies of repositories lie that a repair may read, or folders above them."""

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
    repair: RepairConfiguration = RepairConfiguration()


def read_configuration(path: Path) -> AgentConfiguration:
    """Raises: ConfigurationError naming the file and the field."""
    try:
        found = msgspec.toml.decode(path.read_bytes(), type=AgentConfiguration)
        session_address(found.controller)
        return found
    except FileNotFoundError as error:
        raise ConfigurationError(
            "the agent has no configuration", file=str(path), advice="run `holdfast-agent enrol`"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"the agent's configuration cannot be read: {error.strerror}", file=str(path)
        ) from error
    except UsageError as error:
        raise ConfigurationError(
            f"the agent's configuration is wrong: controller is {error.message}",
            advice=error.advice,
            file=str(path),
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the agent's configuration is wrong: {error}", file=str(path)
        ) from error


def configuration_text(configuration: AgentConfiguration) -> str:
    """The file's text, for `enrol`."""
    plain: Any = msgspec.to_builtins(configuration)
    return msgspec.toml.encode(plain).decode()


def session_address(text: str) -> str:
    """What is dialled: with the usual port when none is given. Raises: UsageError."""
    host, port = split_address(text)
    return f"{bracketed(host)}:{port or SESSION_PORT}"


def split_address(text: str) -> tuple[str, int]:
    """``host``, ``host:port`` or ``[v6]:port``; port 0 when none is given. Raises: UsageError."""
    host, separator, port = text.rpartition(":")
    if not separator or "]" in port or (host.count(":") > 0 and not host.startswith("[")):
        host, port = text, "0"
    host = host.strip("[]")
    if (
        not host
        or not host.isprintable()
        or " " in host
        or "/" in host
        or not port.isdecimal()
        or int(port) > 65535
    ):
        raise UsageError("not an address", address=text[:100], advice="write HOST or HOST:PORT")
    return host, int(port)


def bracketed(host: str) -> str:
    """As an address has it: ``[::1]``."""
    return f"[{host}]" if ":" in host else host
