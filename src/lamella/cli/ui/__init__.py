"""The local page: a server for one person on this machine. Every deed is a `lamella` of its own, started beside it."""
