"""For all tests: our packages are loaded before any test's own imports. See holdfast_common/__init__.py."""

import os

import pytest
from hypothesis import settings

import holdfast_common  # noqa: F401 - before grpc, whichever test is collected first
from support.crash_summary import CrashSummary
from support.damage_summary import DamageSummary
from support.figures_summary import FiguresSummary
from support.killing_summary import KillSummary
from support.planting_summary import PlantingSummary
from support.restoring_summary import RestoringSummary

# On a busy machine any example may be slow. A change is judged by the same examples each time: what random ones find
# belongs to whoever looks for it, by HYPOTHESIS_PROFILE=random.
settings.register_profile("random", deadline=None)
settings.register_profile("holdfast", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "holdfast"))


def pytest_configure(config: pytest.Config) -> None:
    """Only the process that sees all reports tells what they come to."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(CrashSummary())
        config.pluginmanager.register(DamageSummary())
        config.pluginmanager.register(FiguresSummary())
        config.pluginmanager.register(KillSummary())
        config.pluginmanager.register(PlantingSummary())
        config.pluginmanager.register(RestoringSummary())
