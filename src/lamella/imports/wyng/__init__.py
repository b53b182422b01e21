"""Archives of wyng 0.8, format 3 (wyng-backup: doc/Wyng_Archive_Format_V3.md)."""
