"""Side-by-side speed measurements; run each with `python -m`."""
