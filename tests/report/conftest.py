import pytest
import reports
from markupsafe import Markup

from harp_jax.report import svg


@pytest.fixture
def quick_figures(request, monkeypatch):
    """Figures are made, but drawn only for the tests that look at what is drawn."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(svg, "inline", lambda figure, name: svg.Svg("0 0 1 1", Markup("")))


@pytest.fixture
def drawn():
    """For tests whose figures are to be drawn."""


@pytest.fixture
def bare(tmp_path):
    """A workdir of which only the results are left."""
    reports.write_json(tmp_path / "results.json", reports.results())
    return tmp_path
