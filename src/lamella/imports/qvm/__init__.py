"""Files of qvm-backup, format 4 (Qubes OS: its documentation of emergency restore, and `man qvm-backup`)."""
