"""The controller's gRPC faces."""
