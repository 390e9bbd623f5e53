"""Carries out runs: dispatch, watch, clean up, reconcile."""
