"""Every module that answers methods or HTTP paths; importing this one registers them all."""

from __future__ import annotations

from holdfast_lab import (
    property_collector,
    search_index,
    service_content,
    soap_service,
    views,
)

PLUGINS = (
    property_collector,
    search_index,
    service_content,
    soap_service,
    views,
)
