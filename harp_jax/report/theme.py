"""The colours of pages and figures, for a light and for a dark screen.

Figures are drawn in the light colours. `harp_jax.report.svg` then writes the name of a variable for
each of them, and the page's style sheet sets the variables by the reader's colour scheme.
"""

# Lines and marks have a contrast of at least 3 to their paper, text of at least 4.5.
PAPER = "#ffffff"
INK = "#2b2f33"
MUTED = "#5f676e"
AXIS = "#b9bfc4"
TRACK = "#e9ecee"
# After Okabe and Ito, darker and lighter: told apart by colour-blind readers.
NATURAL = "#0072b2"
ROBUST = "#d55e00"
CORRECT = "#00795a"
WRONG = "#c0300a"
SERIES = (NATURAL, ROBUST, CORRECT, "#9a4c80", "#8a6200", MUTED)  # lines of several runs
# Of layers, from the first to the last: from dark to light, on either paper.
RAMP = (
    *("#440154", "#471365", "#482475", "#463480", "#414487", "#3b528b", "#355f8d"),
    *("#2f6c8e", "#2a788e", "#25848e", "#21918c", "#1e9c89"),
)
_DARK_RAMP = (
    *("#4a73a8", "#437fae", "#3c8bb1", "#3597b2", "#32a3b0", "#35afab", "#45bba2"),
    *("#5fc795", "#80d285", "#a5db74", "#cce465", "#f4ea5e"),
)
_DARK = {
    PAPER: "#15181b",
    INK: "#e4e7ea",
    MUTED: "#a4acb3",
    AXIS: "#565e65",
    TRACK: "#2b3035",
    NATURAL: "#5ab4ee",
    ROBUST: "#f28c45",
    CORRECT: "#43c59b",
    WRONG: "#ff8569",
    SERIES[3]: "#dc96c0",
    SERIES[4]: "#dfb44e",
    **dict(zip(RAMP, _DARK_RAMP, strict=True)),
}
_NAMES = {
    PAPER: "paper",
    INK: "ink",
    MUTED: "muted",
    AXIS: "axis",
    TRACK: "track",
    NATURAL: "natural",
    ROBUST: "robust",
    CORRECT: "correct",
    WRONG: "wrong",
    SERIES[3]: "series-3",
    SERIES[4]: "series-4",
    **{colour: f"layer-{place}" for place, colour in enumerate(RAMP)},
}

# Light colour -> name of its variable; black is what matplotlib takes where it is told nothing.
VARIABLES = {**_NAMES, "#000000": _NAMES[INK]}
LIGHT = {name: colour for colour, name in _NAMES.items()}
DARK = {name: _DARK[colour] for colour, name in _NAMES.items()}


def ramp(count: int) -> list[str]:
    """Returns colours for a number of layers, evenly spread over `RAMP`; neighbours may repeat."""
    last = len(RAMP) - 1
    return [RAMP[round(place * last / max(count - 1, 1))] for place in range(count)]
