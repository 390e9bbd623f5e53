"""Errors of the lab itself; the program's commands need them without pyVmomi."""

from __future__ import annotations


class LabError(Exception):
    """The lab itself was used wrongly (a bad inventory file, an unknown command)."""


class ConnectionCut(LabError):
    """The connection is to be closed without an answer."""
