"""Side-by-side measurements of speed and of kills; run each with `python -m`."""
