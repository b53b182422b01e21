"""The common part of several operations: selecting, reading, streaming, marking."""
