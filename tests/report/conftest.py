import pytest
import reports

from harp_jax.report import plots


@pytest.fixture
def quick_figures(request, monkeypatch):
    """Figures are made, but drawn only for the tests that look at what is drawn, and coarsely."""
    monkeypatch.setattr(plots, "DOTS_PER_INCH", 30)
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(plots, "to_png_bytes", lambda figure: b"not drawn")


@pytest.fixture
def drawn():
    """For tests whose figures are to be drawn."""


@pytest.fixture
def bare(tmp_path):
    """A workdir of which only the results are left."""
    reports.write_json(tmp_path / "results.json", reports.results())
    return tmp_path
