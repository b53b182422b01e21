"""Looking without changing: lists, differences, sizes."""
