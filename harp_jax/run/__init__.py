"""A whole run: its stages in order, how each trains, and its results.

`main` may import this one.
"""
