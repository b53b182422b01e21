"""The only effects besides files: programs, threads, the memory allocator."""
