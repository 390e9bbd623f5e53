"""Configurations of agents for tests."""

from __future__ import annotations

from pathlib import Path

from holdfast_agent.configuration import (
    AgentConfiguration,
    HotAddConfiguration,
    RepairConfiguration,
    RestoreConfiguration,
)


def agent_configuration(
    *,
    datastores: dict[str, Path] | None = None,
    restore_folders: tuple[Path, ...] = (),
    repair_folders: tuple[Path, ...] = (),
    device_folder: Path | None = None,
    repositories: dict[str, Path] | None = None,
) -> AgentConfiguration:
    """An agent that reaches just these folders."""
    return AgentConfiguration(
        controller="127.0.0.1:1",
        agent_id="01J00000000000000000000000",
        repositories={name: str(path) for name, path in (repositories or {}).items()},
        datastores={name: str(path) for name, path in (datastores or {}).items()},
        hot_add=HotAddConfiguration(device_folder=str(device_folder or "")),
        restore=RestoreConfiguration(folders=tuple(str(path) for path in restore_folders)),
        repair=RepairConfiguration(folders=tuple(str(path) for path in repair_folders)),
    )
