"""Every module that answers methods or HTTP paths; importing this one registers them all."""

from __future__ import annotations

from holdfast_lab import (
    changed_blocks,
    datastore_files,
    datastore_search,
    machine_life,
    power,
    property_collector,
    reconfigure,
    relocation,
    search_index,
    service_content,
    snapshots,
    soap_service,
    views,
)

PLUGINS = (
    changed_blocks,
    datastore_files,
    datastore_search,
    machine_life,
    power,
    property_collector,
    reconfigure,
    relocation,
    search_index,
    service_content,
    snapshots,
    soap_service,
    views,
)
