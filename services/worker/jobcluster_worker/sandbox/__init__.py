"""What a task's process may see and do: namespaces, own uid, no rights, and the start itself. Stdlib only."""
