"""Backups that run by themselves: profiles, steps, conditions, messages, and the units that start them."""
