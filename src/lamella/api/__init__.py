"""The short way for programs: `lamella.open`, and what it returns. No command loads it."""
