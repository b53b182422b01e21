"""What is true: the signed chains of commits, what they add up to, and how one is appended (FORMAT 8)."""
