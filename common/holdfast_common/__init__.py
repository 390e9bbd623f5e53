"""What controller and agents share: errors, formats, the block path, the repository, trust and the wire."""
