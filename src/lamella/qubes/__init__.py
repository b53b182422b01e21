"""Qubes OS: whole qubes as what is backed up and restored, data and settings.

**qube**: a virtual machine of Qubes OS, known by its UUID; its name is a label. **inventory**: what qubesd says there
is. **settings**: everything about one qube but its volumes' bytes, as one document under that qube's key. **import**:
the transaction by which qubesd replaces a volume, old state kept. Everything here runs in dom0 and speaks to qubesd.
"""
