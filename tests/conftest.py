"""For all tests: grpc's TLS settings are made before any test module imports grpc."""

import jobcluster_common.tls  # noqa: F401
