"""Small files and folders of datastores: over HTTPS, pinned, with the login's cookie, and by tasks.

Whole disks never pass here. Files beside a VM are the live ones, not the snapshot's.
"""
