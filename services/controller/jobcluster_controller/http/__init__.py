"""The HTTP door: one table of routes, from which the checks, OpenAPI and the tests are made."""
