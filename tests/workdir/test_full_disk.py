"""A disk that is full, read-only or gone: one line, and the run goes on to the same bits."""

import errno
import logging
import os
import pathlib
import shutil
import subprocess

import pytest
import runs
from etils import epath

from harp_jax.run import experiment
from harp_jax.training.event_file import EventFile
from harp_jax.workdir import WriteError, files, write_atomically


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return runs.finished(tmp_path_factory.getbasetemp())


def mount(folder, options):
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """Mounts a small disk with some options; each further call changes them."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def with_options(options):
        if not mount(folder, f"remount,{options}" if os.path.ismount(folder) else options):
            pytest.skip("this user may not mount file systems")
        return folder

    yield with_options
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def refused(workdir):
    with pytest.raises(WriteError) as caught:
        experiment.run(runs.digits(**runs.FIELDS), workdir)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith(str(workdir))
    return text


@pytest.mark.slow
def test_a_run_goes_on_after_a_full_disk_with_the_same_bits(disk, finished):
    """It fills the disk again and again, each time at another place."""
    stopped = []
    for size in (40, 90, 140, 230, 330, 400, 470, 600):
        workdir = disk(f"size={size}k,nr_inodes=10k") / "run"
        try:
            experiment.run(runs.digits(**runs.FIELDS), workdir)
        except ValueError as error:  # from the claim
            stopped.append(str(error))
        except WriteError as error:
            stopped.append(str(error))
    print(*stopped, sep="\n")
    assert len(set(stopped)) >= 3
    assert all("cannot be written (No space left on device)" in text for text in stopped)
    assert all(str(workdir) in text and "\n" not in text for text in stopped)
    disk("size=64m,nr_inodes=10k")
    experiment.run(runs.digits(**runs.FIELDS), workdir)
    runs.assert_identical(finished, workdir)
    assert list(workdir.rglob("*tmp*")) == []


@pytest.mark.slow
def test_a_run_goes_on_after_a_disk_without_inodes(disk, finished):
    folder = disk("size=64m,nr_inodes=60")
    assert "cannot be written (No space left on device)" in refused(folder / "run")
    disk("size=64m,nr_inodes=10k")
    experiment.run(runs.digits(**runs.FIELDS), folder / "run")
    runs.assert_identical(finished, folder / "run")


def test_a_read_only_disk_is_one_line(disk, finished):
    folder = disk("size=64m")
    shutil.copytree(finished, folder / "run")
    shutil.rmtree(folder / "run" / "finetune")
    disk("ro")
    with pytest.raises(ValueError, match="Read-only file system") as caught:
        experiment.run(runs.digits(**runs.FIELDS), folder / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"workdir={str(folder / 'run')!r}: cannot be written")


@pytest.mark.parametrize("stage", ["finetune", "evaluate"])
def test_a_folder_that_vanishes_is_one_line(stage, finished, tmp_path, monkeypatch):
    """And nothing is written to its place, which may be another disk's."""
    workdir, gone = tmp_path / "run", tmp_path / "gone"
    shutil.copytree(finished, workdir)
    if stage == "finetune":
        shutil.rmtree(workdir / "finetune")
    (workdir / "results.json").unlink()
    original = files.write_atomically

    def rename_first(path, content, **options):
        if path.name in ("metrics.jsonl", "results.json") and not gone.exists():
            workdir.rename(gone)
        original(path, content, **options)

    monkeypatch.setattr("harp_jax.training.metrics.write_atomically", rename_first)
    monkeypatch.setattr(files, "write_atomically", rename_first)
    assert refused(workdir).endswith("cannot be written (No such file or directory)")
    assert not workdir.exists()


class Full:
    """Makes every write to files that are open in binary mode fail in the middle."""

    def __init__(self, patch):
        original = type(epath.Path("x")).open

        def half(path, mode="r", **options):
            file = original(path, mode, **options)
            if mode in ("wb", "ab"):
                file = _HalfWritten(file)
            return file

        patch.setattr(type(epath.Path("x")), "open", half)


class _HalfWritten:
    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, content):
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "results.json")
    write_atomically(path, "the old content")
    Full(monkeypatch)
    with pytest.raises(WriteError) as caught:
        write_atomically(path, "the new content")
    assert str(caught.value) == f"{path}: cannot be written (No space left on device)"
    assert path.read_text() == "the old content"
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]


def test_events_that_do_not_fit_are_said_once(tmp_path, monkeypatch, caplog):
    events = EventFile(tmp_path, 0)
    Full(monkeypatch)
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            events.add(epoch, [("loss", 0.5)])
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text


def test_a_line_of_the_command_names_the_file_and_the_cause(finished, tmp_path, monkeypatch):
    workdir = pathlib.Path(shutil.copytree(finished, tmp_path / "run"))
    page = workdir / "report" / "index.html"
    page.unlink()
    page.mkdir()
    options = ["--config.stages=('report',)", "--config.devices=1"]
    done = runs.here([*runs.command(workdir, *runs.SHORT), *options])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {page}: cannot be written (it is a")
    assert "the same command goes on" in done.stderr
