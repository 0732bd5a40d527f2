"""The kernel's limits and counters: pure value files per controller, and one tree that writes. Stdlib only."""
