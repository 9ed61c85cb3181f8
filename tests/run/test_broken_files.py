"""A finished run one of whose files was damaged: one line that names the file."""

import json
import logging
import re
import shutil

import numpy as np
import pytest
import runs

from harp_jax import report
from harp_jax.run import experiment
from harp_jax.training.metrics import MetricsLog
from harp_jax.workdir import ReportError, read_metrics

OTHER_FORMS = [
    ("results.json", "[]"),
    ("results.json", '{"rows": 3}'),
    ("results.json", '{"rows": [3]}'),
    ("results.json", '{"rows": [{"stage": "prune"}]}'),
    ("results.json", '{"rows": [], "attacks": {"fgsm": 3}}'),
    ("results.json", '{"rows": [], "notes": "none"}'),
    ("config.json", "7"),
    ("config.json", '{"config": []}'),
    ("config.json", '{"config": {"prune": 3}}'),
    ("config.json", '{"config": {"prune": {"target": "small"}}}'),
    ("prune/metrics.jsonl", "[]"),
    ("prune/metrics.jsonl", "{}"),
    ("prune/metrics.jsonl", '{"epoch": "first"}'),
    ("prune/metrics.jsonl", '{"epoch": 0, "train": 7}'),
    ("prune/metrics.jsonl", '{"epoch": 0, "validation": {"natural": "high"}}'),
    ("prune/metrics.jsonl", '{"epoch": 0, "compression": {"loss": 0.0}}'),
    ("examples.npz", "images"),
]


@pytest.fixture
def workdir(tmp_path_factory, tmp_path):
    finished = runs.finished(tmp_path_factory.getbasetemp())
    return shutil.copytree(finished, tmp_path / "run")


def refused(workdir, path, *stages):
    config = runs.digits(**runs.FIELDS, stages=stages)
    with pytest.raises(ReportError) as caught:
        experiment.run(config, workdir) if stages else report.write(workdir)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("stage", ["pretrain", "evaluate", "report"])
@pytest.mark.parametrize("content", ["{", "[]", '{"rows": 1}', '{"rows": [{"stage": 1}]}'])
def test_a_table_stops_every_stage(content, stage, workdir):
    (workdir / "results.json").write_text(content)
    refused(workdir, workdir / "results.json", stage)
    assert (workdir / "results.json").read_text() == content


@pytest.mark.parametrize(("name", "content"), OTHER_FORMS)
def test_a_file_of_another_form(workdir, name, content):
    (workdir / name).write_text(content)
    refused(workdir, workdir / name)


@pytest.mark.parametrize("name", ["results.json", "config.json", "prune/metrics.jsonl"])
def test_bytes_that_are_no_text(name, workdir):
    (workdir / name).write_bytes(b"\xff\xfe\x00")
    refused(workdir, workdir / name)


def test_a_wrong_number_is_named(workdir):
    table = runs.results(workdir)
    table["rows"][1]["robust"]["pgd10"] = "high"
    (workdir / "results.json").write_text(json.dumps(table))
    said = refused(workdir, workdir / "results.json")
    assert said == (
        "rows[1].robust.pgd10='high': allowed are numbers in [0, 1]; remove it, and the command of"
        " its run measures its networks again"
    )


def test_a_log_that_a_stage_would_go_on_with(workdir):
    shutil.rmtree(workdir / "finetune" / "result")
    log = workdir / "finetune" / "metrics.jsonl"
    log.write_text("3")
    said = refused(workdir, log, "finetune")
    assert said == (
        "line 1: the value=3: allowed are objects; remove that line: networks do not depend on it"
    )


def test_images_that_are_cut_short_or_not_whole(workdir):
    path = workdir / "examples.npz"
    whole, arrays = path.read_bytes(), dict(np.load(path))

    path.write_bytes(whole[:-100])
    assert "cannot be read as arrays" in refused(workdir, path)
    path.write_bytes(whole[:200] + bytes(100) + whole[300:])
    assert "cannot be read as arrays" in refused(workdir, path)
    with path.open("wb") as file:
        np.save(file, arrays["images"])
    assert "no zip archive" in refused(workdir, path)
    with path.open("wb") as file:
        np.savez(file, images=np.array([{}], object))
    assert "cannot be read as arrays" in refused(workdir, path)
    for name in ("attack", "labels", "prune/adversarial"):
        with path.open("wb") as file:
            np.savez(file, **{other: each for other, each in arrays.items() if other != name})
        assert f"has no {name}" in refused(workdir, path)
    with path.open("wb") as file:
        np.savez(file, **{**arrays, "labels": arrays["labels"][:1]})
    assert "do not fit each other" in refused(workdir, path)


@pytest.mark.parametrize(
    "end",
    [
        b'{"epoch": 3, "tra',
        b'{"stage": "\xc3',
        pytest.param(b"{", marks=pytest.mark.slow),
        pytest.param(b"\0\0\0", marks=pytest.mark.slow),
    ],
)
def test_half_a_last_line_is_dropped_and_said(end, workdir, caplog):
    path = workdir / "prune" / "metrics.jsonl"
    whole = read_metrics(path)
    with path.open("ab") as file:
        file.write(end)
    with caplog.at_level(logging.WARNING):
        assert read_metrics(path) == whole
    assert [each.getMessage() for each in caplog.records] == [
        f"{path}: line {len(whole) + 1} ends in the middle; it is dropped"
    ]
    report.write(workdir)


def test_half_a_line_in_the_middle_is_refused(workdir):
    path = workdir / "prune" / "metrics.jsonl"
    path.write_text('{"epoch": 0\n' + path.read_text())
    assert refused(workdir, path).startswith("line 1 is not valid JSON")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("natural", "1.5", "rows[0].natural=1.5: allowed are numbers in [0, 1]"),
        ("natural", "NaN", "rows[0].natural=None: allowed are numbers in [0, 1]"),
        ("seconds", "1e999", "rows[0].seconds=inf: allowed are numbers >= 0"),
        ("total", "0", "rows[0].total=0: allowed are whole numbers >= 1"),
        ("images", str(10**30), "allowed are whole numbers >= 1"),
        ("notes", "[" * 40 + "]" * 40, "is nested too deeply; allowed are at most 32 levels"),
        ("notes", "[" * 10**5 + "]" * 10**5, "is nested too deeply"),
    ],
)
def test_numbers_and_depth_have_limits(field, value, said, workdir):
    table = runs.results(workdir)
    table["rows"][0][field] = "VALUE"
    text = json.dumps(table).replace('"VALUE"', value)
    (workdir / "results.json").write_text(text)
    assert said in refused(workdir, workdir / "results.json")


def test_a_file_that_is_too_large_is_not_read(workdir):
    with (workdir / "results.json").open("ab") as file:
        file.truncate(2**26 + 1)
    assert "has 67,108,865 bytes; allowed are at most" in refused(workdir, workdir / "results.json")


def test_names_from_files_are_text_on_the_page(workdir):
    evil = "<script>alert(1)</script>$\\frac{$"
    table = runs.results(workdir)
    attacks = table["attacks"]
    attacks[evil] = attacks.pop("pgd10")
    for row in table["rows"]:
        row["robust"][evil] = row["robust"].pop("pgd10")
        row["warnings"] = [evil]
        for layer in row["layers"]:
            layer["layer"] += evil
    table["notes"], table["dataset"]["name"] = [evil], evil
    (workdir / "results.json").write_text(json.dumps(table))
    other = shutil.copytree(workdir, workdir.with_name("<script>$_{"))
    for page in (report.write(workdir), report.compare([workdir, other], workdir / "compared")):
        text = page.read_text()
        assert "<script" not in text
        assert "&lt;script&gt;" in text


@pytest.mark.parametrize("name", ["results.json", "network.json", "prune/metrics.jsonl"])
def test_a_changed_number_is_found(name, workdir):
    path = workdir / name
    text = path.read_text()
    (place, *_) = (each.start() for each in re.finditer(r"(?<=\b0\.)\d", text))
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    assert "is not what was saved, by its checksum" in refused(workdir, path)


def test_records_that_are_gone_are_said_and_networks_stay(workdir, tmp_path, caplog):
    log = workdir / "prune" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join([lines[0], *lines[2:]]))
    (workdir / "pretrain" / "metrics.jsonl").unlink()
    (workdir / "strategy.json").write_text("{")
    network = workdir / "network.safetensors"
    whole = network.read_bytes()
    network.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    before = (workdir / "network.json").read_bytes()
    with caplog.at_level(logging.WARNING):
        experiment.run(runs.digits(**runs.FIELDS), workdir)
    said = "; networks do not depend on"
    assert [text.partition(said)[0] for text in caplog.messages if said in text] == [
        f"{workdir}/pretrain/metrics.jsonl: lacks the rows of 2 of 2 epochs, first that of epoch 0",
        f"{log}: lacks the rows of 1 of 3 epochs, first that of epoch 1",
        *(text.partition(said)[0] for text in caplog.messages if "strategy.json: cannot" in text),
    ]
    assert sum("strategy.json: cannot be read" in text for text in caplog.messages) == 1
    start = 8 + int.from_bytes(whole[:8], "little")  # of the data; the header names the workdir
    assert network.read_bytes()[-len(whole[start:]) :] == whole[start:]  # written again
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        MetricsLog(tmp_path / "prune", resume_at=2)
    assert caplog.messages[0].startswith(
        f"{tmp_path}/prune/metrics.jsonl: lacks the rows of 2 of 2"
    )
    assert (workdir / "network.json").read_bytes() != before
