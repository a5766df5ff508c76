"""The machine below us: files that others may have put a trap into, listening sockets, log output, and whether threads move."""
