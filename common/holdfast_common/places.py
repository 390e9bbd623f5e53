"""Where Holdfast keeps its files on this machine: configuration, state, and what lives as long as a boot.

As root: /etc/holdfast, /var/lib/holdfast, /run/holdfast. Otherwise the XDG folders.
``HOLDFAST_HOME`` overrides all of them, for a second installation or for tests.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast_common.errors import ConfigurationError, Refused

SOCKET_PATH_BYTES_MAX: Final = 107  # sockaddr_un.sun_path on Linux, without its final NUL
HOME_VARIABLE: Final = "HOLDFAST_HOME"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The three folders that everything else lies below; all absolute. They need not exist yet."""

    configuration: Path
    state: Path
    run: Path

    @property
    def controller_configuration(self) -> Path:
        """The controller's configuration file."""
        return self.configuration / "controller.toml"

    @property
    def controller_state(self) -> Path:
        """The controller's own folder: database, trust. 0700."""
        return self.state / "controller"

    @property
    def database(self) -> Path:
        """The controller's database."""
        return self.controller_state / "controller.sqlite"

    @property
    def trust(self) -> Path:
        """The authority's and the controller's keys and certificates. 0700."""
        return self.controller_state / "trust"

    @property
    def agent_configuration(self) -> Path:
        """The agent's configuration file."""
        return self.configuration / "agent.toml"

    @property
    def agent_state(self) -> Path:
        """The agent's own folder: keys, certificate, ledger. 0700."""
        return self.state / "agent"

    def operator_socket(self) -> Path:
        """The operators' Unix socket; at most 107 bytes, in a short folder of ours when it must be."""
        path = self.run / "operators" / "operator.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
            return path
        name = hashlib.sha256(os.fsencode(self.run)).hexdigest()[:16]
        return _short_folder() / name / "operator.sock"


def find_places(environment: Mapping[str, str] | None = None) -> Places:
    """The places of this process. Raises: ConfigurationError when no home folder is known."""
    variables = os.environ if environment is None else environment
    home = variables.get(HOME_VARIABLE, "")
    if home:
        root = Path(home).absolute()
        return Places(configuration=root / "etc", state=root / "lib", run=root / "run")
    if os.geteuid() == 0:
        return Places(
            configuration=Path("/etc/holdfast"),
            state=Path("/var/lib/holdfast"),
            run=Path("/run/holdfast"),
        )
    state = _xdg_folder(variables, "XDG_STATE_HOME", ".local/state")
    runtime = variables.get("XDG_RUNTIME_DIR", "")
    return Places(
        configuration=_xdg_folder(variables, "XDG_CONFIG_HOME", ".config"),
        state=state,
        run=Path(runtime) / "holdfast" if Path(runtime).is_absolute() else state / "run",
    )


def private_folder(path: Path, *, mode: int = 0o700) -> Path:
    """Make a folder (and its parents) with exactly this mode, or check the one that is there.

    Raises: Refused when it is not ours, or is no folder; ConfigurationError when it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=mode)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise Refused(
                "a private folder is not a folder of this user",
                folder=str(path),
                advice="remove it, or set HOLDFAST_HOME to another folder",
            )
        if stat.S_IMODE(found.st_mode) != mode:
            path.chmod(mode)
    except OSError as error:
        raise ConfigurationError(
            f"cannot make a folder: {error.strerror}", folder=str(path)
        ) from error
    return path


def _xdg_folder(variables: Mapping[str, str], name: str, below_home: str) -> Path:
    value = variables.get(name, "")
    if Path(value).is_absolute():
        return Path(value) / "holdfast"
    home = variables.get("HOME", "")
    if not Path(home).is_absolute():
        raise ConfigurationError(
            "no home folder is known", advice="set HOME, or HOLDFAST_HOME to a folder of your own"
        )
    return Path(home) / below_home / "holdfast"


def _short_folder() -> Path:
    """A folder of this user with a short name; whoever opens a socket there checks its owner."""
    temporary = Path(tempfile.gettempdir())
    if len(os.fsencode(temporary)) > 40:  # a long TMPDIR would not help
        temporary = Path("/tmp")  # noqa: S108 - only a folder of our own below it is used, owner checked
    return temporary / f"holdfast-{os.geteuid()}"
