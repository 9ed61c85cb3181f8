"""What the site needs beside Sphinx: formulas as MathML, and the list of the configuration."""
