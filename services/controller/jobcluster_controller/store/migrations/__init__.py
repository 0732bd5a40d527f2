"""The store's schema, in numbered steps: NNNN_title.sql, each applied once, never changed afterwards."""
