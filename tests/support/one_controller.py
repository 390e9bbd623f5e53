"""A controller's home and repository in this process, without sessions, agents or vSphere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from holdfast_common.clock import SystemClock
from holdfast_common.places import Places, find_places
from holdfast_controller.commands.init import initialise
from holdfast_controller.configuration import ControllerConfiguration
from holdfast_controller.runs.key_keeper import KeyKeeper
from holdfast_controller.runs.reconcile import Orphans
from holdfast_controller.runs.self_backup import CopyVerdict, SelfBackup, copy_verdict
from holdfast_controller.runs.world import World
from holdfast_controller.service.agent_sessions import AgentSessions
from holdfast_controller.service.session_timing import SessionTiming
from holdfast_controller.store.agents import AgentTable
from holdfast_controller.store.database import Database
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.secrets import SecretSeal
from holdfast_controller.store.settings import Settings
from support.one_process import controller_world


@dataclass(frozen=True)
class OneController:
    """What it has; nothing of it runs by itself."""

    folder: Path
    places: Places
    sheet: str
    database: Database
    world: World
    backup: SelfBackup
    seal: SecretSeal

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def settings(self) -> Settings:
        return self.world.settings

    @property
    def keeper(self) -> KeyKeeper:
        return self.world.keeper

    def copy_now(self) -> None:
        """A round in which a copy is due, whenever the last one was made."""
        self.backup.due()
        self.backup.look()

    def verdict(self) -> CopyVerdict:
        return copy_verdict(self.world)


def one_controller(folder: Path) -> OneController:
    """Set one up, below ``folder``."""
    places = find_places({"HOLDFAST_HOME": str(folder / "home")})
    configuration = ControllerConfiguration()
    made = initialise(places, folder / "repository", configuration, accepted=True)
    database = open_database(places.database)
    sessions = AgentSessions(
        AgentTable(database, SystemClock()),
        Orphans(),
        timing=SessionTiming(heartbeat=10.0, job_lease=45.0),
    )
    world = controller_world(places, configuration, database, sessions, None)
    return OneController(
        folder=folder,
        places=places,
        sheet=made.sheet.key_text(),
        database=database,
        world=world,
        backup=SelfBackup(world, database, places),
        seal=SecretSeal.from_file(places.controller_state / "secrets.key"),
    )
