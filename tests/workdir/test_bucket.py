"""A workdir in a bucket: a lease instead of a lock, and one line without gcsfs."""

import importlib.util
import json
import logging
import threading
import time

import fsspec
import pytest
import runs
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from harp_jax.checkpoint import StageCheckpoints
from harp_jax.run import experiment
from harp_jax.training.event_file import EventFile
from harp_jax.workdir import WorkdirError, lease, ownership, read_metrics, write_atomically
from harp_jax.workdir.files import write_json


class Bucket(MemoryFileSystem):
    """Objects in memory, with those of gcsfs' functions that a workdir uses."""

    protocol = ("gs", "gcs")
    store = {}  # noqa: RUF012  # of the class, as that of its parent
    pseudo_dirs = [""]  # noqa: RUF012

    def makedirs(self, path, exist_ok=True):
        """Makes nothing: a bucket has no empty folders."""

    def mkdir(self, path, create_parents=True, **_):
        """Makes nothing."""

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture
def workdir(monkeypatch):
    monkeypatch.setattr(fsspec, "filesystem", {"gs": Bucket()}.__getitem__)
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    monkeypatch.setattr(
        "etils.epath.backend._FileSystemSpecBackend._get_filesystem", lambda *_: Bucket()
    )
    monkeypatch.setattr(lease, "RENEWED_EVERY", 0.05)
    monkeypatch.setattr(lease, "PATIENCE", 0.4)
    yield epath.Path("gs://bucket/run")
    Bucket.store.clear()


def test_files_are_written_and_read(workdir):
    write_atomically(workdir / "report" / "index.html", "old")
    write_atomically(workdir / "report" / "index.html", "new")
    assert (workdir / "report" / "index.html").read_text() == "new"
    write_json(workdir / "metrics.jsonl", {"epoch": 0})
    (workdir / "metrics.jsonl").write_text('{"epoch": 0}\n{"epo')
    assert read_metrics(workdir / "metrics.jsonl") == [{"epoch": 0}]
    assert all("tmp" not in name for name in Bucket.store)


def test_events_are_all_there_after_each_epoch(workdir):
    events = EventFile(workdir / "tensorboard", 0)
    (name,) = Bucket.store
    sizes = [len(Bucket().cat_file(name))]
    for epoch in range(2):
        events.add(epoch, [("loss", 0.5)])
        sizes.append(len(Bucket().cat_file(name)))
    assert sizes == sorted(set(sizes))
    assert list(Bucket.store) == [name]


def test_a_second_run_is_refused_while_the_first_one_lives(workdir):
    with (
        ownership.held(workdir),
        pytest.raises(WorkdirError, match="another process is running in it"),
        ownership.held(workdir),
    ):
        raise AssertionError("two runs hold one workdir")
    assert not (workdir / ".lock").exists()
    with ownership.held(workdir):
        assert json.loads((workdir / ".lock").read_text())["process"] > 0


def test_what_a_killed_run_left_is_taken_over(workdir, caplog):
    (workdir / ".lock").write_text("a run that was killed")
    with caplog.at_level(logging.INFO), ownership.held(workdir):
        assert "lease" in (workdir / ".lock").read_text()
    assert "looking for" in caplog.text
    assert not (workdir / ".lock").exists()


def test_a_lease_that_another_run_took_over_is_left_to_it(workdir, caplog):
    with ownership.held(workdir):
        (workdir / ".lock").write_text("of another run")
        time.sleep(0.3)
        assert (workdir / ".lock").read_text() == "of another run"
    assert (workdir / ".lock").read_text() == "of another run"
    assert "another run has taken it over" in caplog.text
    (workdir / ".lock").unlink()
    with ownership.held(workdir):
        (workdir / ".lock").unlink()  # the end is the run's own, not that of the lease


def test_a_state_is_saved_where_no_folder_is(workdir, monkeypatch):
    saved = []
    checkpoints = StageCheckpoints(workdir / "pretrain" / "checkpoints")
    assert not (workdir / "pretrain" / "checkpoints").exists()
    manager = checkpoints._managers["last"]
    monkeypatch.setattr(manager, "save", lambda step, **_: saved.append(step))
    checkpoints.save_last(5, {"params": {}}, {}, {})
    assert saved == [5]
    checkpoints.close()


def test_only_one_of_two_takes_it_over(workdir):
    (workdir / ".lock").write_text("a run that was killed")
    held, refused, done = [], [], threading.Event()

    def run():
        try:
            with ownership.held(workdir):
                held.append(1)
                done.wait(2.0)
        except WorkdirError:
            refused.append(1)
            done.set()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 1)


def test_without_the_extra_it_is_one_line(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gcsfs" else found(name)
    )
    with pytest.raises(WorkdirError) as caught:
        experiment.run(runs.digits(), "gs://bucket/run")
    assert str(caught.value) == (
        "workdir='gs://bucket/run': gcsfs is not installed; allowed with harp_jax[gcs], or local"
        " folders"
    )
    done = runs.here([*runs.command("gs://bucket/run")[:3], "--workdir=gs://bucket/run"])
    assert done.returncode == 2
    assert "gcsfs is not installed" in done.stderr


def test_other_urls_are_refused():
    with pytest.raises(WorkdirError, match="allowed are local folders and gs://BUCKET/FOLDER"):
        experiment.run(runs.digits(), "s3://bucket/run")
