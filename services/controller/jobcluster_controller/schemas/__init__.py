"""What the HTTP API reads and writes: one model per document, from which checking and OpenAPI both come."""
