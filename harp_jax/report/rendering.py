"""Renders the templates."""

from collections.abc import Iterable
from typing import Any

import jinja2
from matplotlib.figure import Figure

from harp_jax.report import svg, theme, words


def page(template: str, figures: Iterable[tuple[str, Figure]], **context: Any) -> bytes:
    """Renders a page.

    Args:
        template: File name of the template.
        figures: Figures in their order, each with a name that the template has a caption for.
        **context: What else the template shows.

    Returns:
        The page in UTF-8: one file with its figures, without scripts.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harp_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "stage": words.stage,
        "count": "{:,}".format,
        "sparsity": words.sparsity,
        "kept": words.kept,
    }
    environment.globals |= {"score": words.score, "light": theme.LIGHT, "dark": theme.DARK}
    drawn = {name: svg.inline(figure, name) for name, figure in figures}
    return environment.get_template(template).render(figures=drawn, **context).encode()
