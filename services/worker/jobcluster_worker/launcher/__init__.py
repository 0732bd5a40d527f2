"""The worker's launcher and its supervisors: stdlib only, run by ``python -I -S``; they outlive the gRPC server."""
