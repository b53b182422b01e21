"""Basics for every room: errors, ids, ranges of bytes, deltas, events, the clock."""
