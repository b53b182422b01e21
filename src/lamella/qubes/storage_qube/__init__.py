"""Files that a storage qube and dom0 get, as they are installed there."""
