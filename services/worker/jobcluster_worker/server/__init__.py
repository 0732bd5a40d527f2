"""The worker's gRPC server: a door to the supervisors, which outlive it. Nothing that a job needs dies with it."""
