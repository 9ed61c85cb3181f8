"""A configuration file that raises, for the tests of the command line."""

raise RuntimeError("no luck")
