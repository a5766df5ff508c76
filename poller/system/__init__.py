"""What the program uses of its machine: files, opened safely; listening sockets; log output; the liveness of threads."""
