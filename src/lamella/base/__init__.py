"""What every room may use: errors, ids, ranges of bytes, deltas, events, the clock."""
