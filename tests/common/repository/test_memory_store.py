"""The store that other tests use in place of a directory does the same."""

from __future__ import annotations

import pytest

from support.memory_store import MemoryStore
from support.object_store_contract import ObjectStoreContract


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


class TestContract(ObjectStoreContract):
    pass
