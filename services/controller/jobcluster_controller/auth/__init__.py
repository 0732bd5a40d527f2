"""Who may do what: roles and their tokens for HTTP, kinds of certificates for gRPC, and how a worker gets its own."""
