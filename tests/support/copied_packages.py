"""A pytest plugin for copies of the product: the run ends at once unless the copy is what is tested."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

PACKAGES = ("holdfast_common", "holdfast_agent", "holdfast_controller", "holdfast_lab", "support")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Raises: pytest.UsageError when a package comes from elsewhere."""
    for name in PACKAGES:
        spec = find_spec(name)
        found = [] if spec is None else list(spec.submodule_search_locations or [])
        if not found or any(not path.startswith(f"{session.config.rootpath}/") for path in found):
            raise pytest.UsageError(f"{name} is not the copy's: {found}")
