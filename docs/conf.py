"""Settings of the documentation's site, which `make docs` builds without any network."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from _extensions import configuration

import harp_jax

project = "harp_jax"
author = "The authors of harp_jax"
version = release = harp_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "_extensions.docstrings",
    "_extensions.mathml",
    "_extensions.signatures",
]
exclude_patterns = ["_build", "_extensions", "examples"]
smartquotes_action = "De"  # dashes, but quotes as docstrings and code have them

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {
    "config_fields": configuration.markdown(),
    "config_attacks": configuration.attacks(),
}

html_theme = "furo"
html_title = f"harp_jax {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
python_display_short_literal_types = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# Every reference to a name of the package must lead somewhere; other packages are not linked.
nitpick_ignore_regex = [("py:.*", r"(?!harp_jax\.).*")]
