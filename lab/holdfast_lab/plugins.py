"""Every module that answers methods or HTTP paths; importing this one registers them all."""

from __future__ import annotations

from holdfast_lab import (
    changed_blocks,
    datastore_files,
    datastore_http,
    datastore_search,
    machine_life,
    nfc_imports,
    nfc_leases,
    nfc_streams,
    power,
    property_collector,
    reconfigure,
    relocation,
    search_index,
    service_content,
    snapshots,
    soap_service,
    views,
    virtual_disks,
)

PLUGINS = (
    changed_blocks,
    datastore_files,
    datastore_http,
    datastore_search,
    machine_life,
    nfc_imports,
    nfc_leases,
    nfc_streams,
    power,
    property_collector,
    reconfigure,
    relocation,
    search_index,
    service_content,
    snapshots,
    soap_service,
    views,
    virtual_disks,
)
