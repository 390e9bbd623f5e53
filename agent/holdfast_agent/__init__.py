"""The agent: dials the controller, reads and writes disks, keeps nothing that a restart cannot rebuild."""
