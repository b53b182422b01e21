"""Drills: a snapshot is booted, and what came of that is recorded (decision 0052)."""
