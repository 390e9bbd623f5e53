"""The lab's datastore files: virtual disks, redo logs, change tracking and the guest's ground truth."""
