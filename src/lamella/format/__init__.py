"""Bytes <-> values of the repository format, without I/O and without keys. docs/FORMAT.md is the specification.

Decoders raise IntegrityError for bytes that break a rule and UnknownFormat for versions, kinds and flags they do not
know. They are given authenticated bytes (`Opened`) except for the few fixed-size headers that must be read first.
"""
