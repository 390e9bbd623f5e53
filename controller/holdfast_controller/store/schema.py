"""All tables of the controller. A new table module is one line here: it exports ``MIGRATIONS``."""

from __future__ import annotations

from pathlib import Path

from holdfast_controller.store import (
    agents,
    audit,
    catalogue,
    damages,
    inventory,
    job_tables,
    keeping,
    ledger,
    notices,
    policies,
    policy_slots,
    prunes,
    settings,
    tracking_evidence,
    vcenters,
)
from holdfast_controller.store.database import Database

ALL = (
    agents.MIGRATIONS,
    audit.MIGRATIONS,
    job_tables.MIGRATIONS,
    catalogue.MIGRATIONS,
    settings.MIGRATIONS,
    ledger.MIGRATIONS,
    vcenters.MIGRATIONS,
    inventory.MIGRATIONS,
    prunes.MIGRATIONS,
    damages.MIGRATIONS,
    notices.MIGRATIONS,
    policies.MIGRATIONS,
    policy_slots.MIGRATIONS,
    keeping.MIGRATIONS,
    tracking_evidence.MIGRATIONS,
)


def open_database(path: Path) -> Database:
    """Open or make the controller's database. Raises: ConfigurationError."""
    return Database(path, ALL)
