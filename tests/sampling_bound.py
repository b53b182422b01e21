"""After how many runs sampling has seen a whole volume: what the documents promise, and tests hold the program to."""

from lamella.operations.backup.sampling import sample_size


def runs_to_see_all(chunks: int, chunk_size: int) -> int:
    """The number of incremental runs after which the cursor has passed every chunk, whatever else was sampled."""
    return -(-chunks // max(1, sample_size(chunks, chunk_size) // 2))
