"""``controller.toml``: where the controller listens, and a few limits. Unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from holdfast_common.errors import ConfigurationError


class ControllerConfiguration(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True
):
    """The whole file. ``advertised_address``: what agents are told to dial, when it differs."""

    session_address: str = "0.0.0.0:9440"
    enrolment_address: str = "0.0.0.0:9441"
    operator_address: str = ""  # mutual TLS for remote operators; empty: the Unix socket only
    advertised_address: str = ""
    jobs_at_once_max: int = 4
    attempts_max: int = 2
    reconcile_seconds: float = 120.0
    heartbeat_seconds: float = 10.0
    job_lease_seconds: float = 45.0


def read_configuration(path: Path) -> ControllerConfiguration:
    """Raises: ConfigurationError naming the file and the field."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=ControllerConfiguration)
    except FileNotFoundError as error:
        raise ConfigurationError(
            "Holdfast is not set up here", file=str(path), advice="run `holdfast init`"
        ) from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"the controller's configuration is wrong: {error}", file=str(path)
        ) from error


def configuration_text(configuration: ControllerConfiguration) -> str:
    """The file's text, for `init`."""
    plain: Any = msgspec.to_builtins(configuration)
    return msgspec.toml.encode(plain).decode()
