"""The controller: decides, talks to vSphere, keeps the ledger and the results."""
