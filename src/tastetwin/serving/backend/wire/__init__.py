"""Messages of the gRPC service."""
