"""A run: its stages in order, how each trains, its folder, its results."""
