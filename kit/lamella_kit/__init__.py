"""Proof for drivers of Lamella: contract suites, stores and volumes that fail on request, real surroundings."""
