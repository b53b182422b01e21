"""Many hosts, each with a repository of its own, seen from one machine: a file for each host, and a catalogue.

Each host is worked on by a `lamella` of its own, so that nothing in one repository reaches another.
"""
