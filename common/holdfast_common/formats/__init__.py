"""Foreign formats: bytes <-> meaning. Every file read here was written by somebody else."""
