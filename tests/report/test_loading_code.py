"""The code on the page that loads the network runs."""

import html
import re
import shutil

import jax
import numpy as np
import pytest
import reports
import runs

import harp_jax
from harp_jax import report
from harp_jax.report import loading


def codes_of(page):
    found = re.findall(r'<pre><code class="python">(.*?)</code></pre>', page, flags=re.DOTALL)
    return [html.unescape(each) for each in found]


def test_the_code_of_the_page_loads_the_network(tmp_path_factory, tmp_path, monkeypatch):
    workdir = runs.finished(tmp_path_factory.getbasetemp())
    page = report.write(workdir, tmp_path).read_text(encoding="utf-8")
    codes = codes_of(page)
    assert ["network.safetensors" in code for code in codes] == [True, False]
    monkeypatch.chdir(workdir)
    expected, _ = harp_jax.load(workdir)
    images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))
    for code in codes:
        names = {}
        exec(compile(code, "page", "exec"), names)
        np.testing.assert_allclose(names["logits_fn"](images), expected(images), atol=1e-4)
        assert names["classes"].shape == (1,)


@pytest.mark.usefixtures("quick_figures")
def test_a_run_without_a_file_and_one_without_networks(tmp_path_factory, tmp_path):
    finished = runs.finished(tmp_path_factory.getbasetemp())
    workdir = shutil.copytree(finished, tmp_path / "run")
    (workdir / "network.json").unlink()
    (code,) = codes_of(report.write(workdir).read_text(encoding="utf-8"))
    assert 'harp_jax.load("finetune")' in code
    for stage in runs.STAGES:
        shutil.rmtree(workdir / stage / "result")
    page = report.write(workdir).read_text(encoding="utf-8")
    assert "Load this network" not in page
    assert codes_of(page) == []


def test_a_network_of_ones_own_is_named():
    found = loading.code("mine:Net", ["pretrain"], has_file=False)
    assert list(found) == ["checkpoint"]
    assert 'harp_jax.load("pretrain", model="mine:Net")' in found["checkpoint"]


@pytest.mark.usefixtures("quick_figures")
def test_a_page_elsewhere_leaves_the_runs_own(bare, tmp_path):
    path = report.write(bare, tmp_path / "elsewhere")
    assert path == tmp_path / "elsewhere" / "index.html"
    assert not (bare / "report").exists()
    assert reports.without_figures(path.read_text()) == reports.page_of(bare)
