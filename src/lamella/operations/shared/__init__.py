"""What several operations use: selecting, reading, streaming, marking."""
