"""Writes a figure as SVG for the inside of a page, in the page's colours and letters."""

import io
import re
from typing import Any, NamedTuple

import markupsafe
import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from harp_jax.report import theme

# Text stays text; identifiers are a function of what is drawn.
_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "harp_jax"}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


class Svg(NamedTuple):
    """The two parts of a figure's `svg` element.

    Attributes:
        view_box: Its attribute `viewBox`.
        body: Its content. Colours are variables of `theme`; text is text, in the page's font.
    """

    view_box: str
    body: markupsafe.Markup


def inline(figure: Figure, name: str) -> Svg:
    """Renders a figure; equal arguments give equal text.

    Args:
        figure: The figure, in colours of `theme`.
        name: A name that no other figure of the page has; identifiers begin with it.

    Returns:
        What the page's `svg` element has.
    """
    for text in figure.findobj(Text):
        if "\\mathdefault" not in text.get_text():  # matplotlib's own, at logarithmic axes
            text.set_parse_math(False)  # a layer's name may have dollar signs
    buffer = io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    text = buffer.getvalue().decode()
    head = re.search(r'<svg[^>]*viewBox="([^"]+)"[^>]*>', text)
    if head is None:
        raise RuntimeError("matplotlib's SVG has no viewBox")
    body = _of_page(text[head.end() : text.rindex("</svg>")], name)
    return Svg(head[1], markupsafe.Markup(body))


def _of_page(body: str, name: str) -> str:
    """Adapts the inside of matplotlib's SVG to a page that holds several."""
    body = re.sub(r"<style.*?</style>|<metadata.*?</metadata>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', body))
    body = re.sub(
        r' id="([^"]*)"',
        lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "",
        body,
    )
    body = re.sub(r'(url\(|href=")#', rf"\1#{name}-", body)
    return re.sub(r' style="([^"]*)"', lambda found: f' style="{_style(found[1])}"', body)


def _style(style: str) -> str:
    """Removes the font and names the variables of the colours."""
    style = re.sub(r"font-family: [^;]*(; )?", "", style)
    style = re.sub(r"font: [^;]*?([\d.]+px) [^;]*", r"font-size: \1", style)  # matplotlib 3.9
    return re.sub(r"#[0-9a-f]{6}", _variable, style)


def _variable(colour: re.Match[str]) -> str:
    name = theme.VARIABLES.get(colour[0])
    return f"var(--{name})" if name else colour[0]
