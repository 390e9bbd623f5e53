"""A vSphere that runs on a laptop: real wire protocol, real VMDK files, misbehaviour on request."""
