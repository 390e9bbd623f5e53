"""Dataclass <-> message. Nobody else builds or reads messages of jobs.

A message that cannot be right is refused with UsageError before anything is done with it.
"""
