"""From a ledger's entry to nothing left of it: one function for each kind, in an order that is safe.

After a crash `runs.reconcile` hands over what its jobs left behind. Each entry is undone alone.
"""
