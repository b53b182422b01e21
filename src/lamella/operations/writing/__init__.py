"""Writing into a repository: one session, its packs, and what it may rely on."""
