"""The gRPC door: what workers call."""
