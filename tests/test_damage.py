"""Damaged checkpoints: never other numbers, never a raw error, and a run goes on."""

import json
import logging
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from test_checkpoint import assert_same

from harp_jax import checkpoint
from harp_jax.checkpoint import record


def cut(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def zero(file: pathlib.Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def remove(file: pathlib.Path) -> None:
    file.unlink()


def flip(share: float):
    """Flips a bit at this share of a file."""

    def damage(file: pathlib.Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(share * (len(content) - 1))] ^= 1
        file.write_bytes(content)

    return damage


WAYS = {
    "cut": cut,
    "zeroed": zero,
    "removed": remove,
    **{f"bit at {share}": flip(share) for share in (0, 0.5, 1)},
}
VARIABLES = {
    "params": {
        "a": {
            "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
            "bias": np.ones(2, np.float32),
        },
        "b": {"scale": np.ones(3, ml_dtypes.bfloat16)},
    },
    "rates": {"a": {"kernel": np.array(0.5, np.float32)}},
}
METADATA = {"epoch": 4, "notes": ["a"], "normalization": None}


def state(step):
    """Variables, and other state, of a step."""
    variables = jax.tree.map(lambda x: (x + step).astype(x.dtype), VARIABLES)
    return variables, {"step": np.array(step, np.int32), "trace": [{"a": np.full(3, step, "f4")}]}


END = state(15)[0]["params"]


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A stage with a result and states of steps 5 and 10, each with a best network."""
    stage = tmp_path_factory.mktemp("saved") / "pretrain"
    checkpoints = checkpoint.StageCheckpoints(stage / "checkpoints")
    for step in (5, 10):
        checkpoints.save_best(step, state(step)[0], {"epoch": step})
        checkpoints.save_last(step, *state(step), {"progress": step})
    checkpoints.close()
    checkpoint.save_result(stage, VARIABLES, METADATA)
    return stage


def damages(saved, inside, tmp_path, ways=tuple(WAYS)):
    """Copies of the stage, each with one file of a folder in it damaged in one way."""
    for number, file in enumerate(files(saved / inside)):
        for way in ways:
            damage = WAYS[way]
            copy = tmp_path / f"{number}-{way}"
            shutil.copytree(saved, copy)
            damage(copy / file.relative_to(saved))
            yield copy, f"{file.relative_to(saved)}: {way}"
            shutil.rmtree(copy)


@pytest.mark.parametrize(
    "ways",
    [("bit at 0.5",), pytest.param(tuple(WAYS), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_a_damaged_result_never_gives_other_numbers(ways, saved, tmp_path):
    found = 0
    for stage, what in damages(saved, "result", tmp_path, ways):
        try:
            read = checkpoint.load(stage)
        except checkpoint.DamagedCheckpointError as error:
            text, found = str(error), found + 1
            assert text.startswith(f"{stage}/result: is damaged ("), what
            assert text.endswith("makes it again from the stage's checkpoints"), what
            assert "\n" not in text
            continue
        assert read.pop("metadata") == METADATA, what
        assert_same(read, VARIABLES)
    assert found > 4 * len(ways)


@pytest.mark.parametrize("item", ["variables", "metadata", "record"])
def test_a_result_without_an_item_is_damaged_and_no_other_is_taken(item, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "pretrain")
    if item == "record":  # as the storage of buckets: a folder is there as long as its files
        (tmp_path / "pretrain" / "result" / "record" / "metadata").unlink()
    else:
        shutil.rmtree(tmp_path / "pretrain" / "result" / item)
    with pytest.raises(checkpoint.DamagedCheckpointError, match=f"result: is damaged .{item}: "):
        checkpoint.load(tmp_path)


def restore(stage, go_on=True):
    """The state that a stage would go on from; then it does, to step 15."""
    checkpoints = checkpoint.StageCheckpoints(stage / "checkpoints")
    found, best = checkpoints.restore_last(*state(0)), checkpoints.best()
    step = 0 if found is None else found[2]["progress"]
    for later in (5, 10, 15):
        if go_on and later > step:
            checkpoints.save_best(later, state(later)[0], {"epoch": later})
            checkpoints.save_last(later, *state(later), {"progress": later})
    checkpoints.close()
    return found, best


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["checkpoints/last/10", "checkpoints/best/10"])
def test_a_damaged_state_is_passed_over_and_said(inside, saved, tmp_path, caplog):
    passed = 0
    for number, (stage, what) in enumerate(damages(saved, inside, tmp_path, ["bit at 0.5"])):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="harp_jax"):
            found, best = restore(stage, go_on=number % 4 == 0)
        assert found is not None, what
        step = found[2]["progress"]
        assert_same(found[0], state(step)[0])
        assert_same(found[1], state(step)[1])
        assert best is not None, what
        assert best.pop("metadata") == {"epoch": step}, what
        assert_same(best, state(step)[0])
        # Orbax' event loop may speak, too, of a task that failed with what it read.
        ours = [record for record in caplog.records if record.name.startswith("harp_jax")]
        said = [record.getMessage() for record in ours]
        if step == 5:
            passed += 1
            assert len(said) == 1, what
            assert said[0].startswith(f"{stage}/{inside}: is damaged ("), said
            assert said[0].endswith("; goes on from step 5: 5 steps are trained again"), said
            assert "\n" not in said[0]
        else:
            assert (step, said) == (10, []), what
        if number % 4 == 0:
            assert_same(checkpoint.load(stage / "checkpoints" / "last" / "15")["params"], END)
    assert passed >= 5


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_checkpoint_of_an_earlier_step_in_place_of_another_is_passed_over(
    name, saved, tmp_path, caplog
):
    stage = tmp_path / "stage"
    shutil.copytree(saved, stage)
    folder = stage / "checkpoints" / name
    shutil.rmtree(folder / "10")
    shutil.copytree(folder / "5", folder / "10")
    with caplog.at_level(logging.WARNING, logger="harp_jax"):
        found, best = restore(stage)
    assert found is not None
    assert best is not None
    assert (found[2]["progress"], best["metadata"]) == (5, {"epoch": 5})
    (line,) = caplog.messages
    assert line.startswith(f"{folder}/10: is damaged (it is of step 5); goes on from step 5")


def test_a_stage_without_a_whole_state_starts_again(saved, tmp_path, caplog):
    shutil.copytree(saved, tmp_path / "stage")
    for step in ("5", "10"):
        zero(tmp_path / "stage" / "checkpoints" / "last" / step / "metadata" / "metadata")
    with caplog.at_level(logging.WARNING, logger="harp_jax"):
        found, best = restore(tmp_path / "stage")
    assert found is None
    assert best is None
    (line,) = caplog.messages
    assert line.count("is damaged (metadata: ") == 2
    assert line.endswith("; goes on from the start of the stage: 10 steps are trained again")
    again, newest = restore(tmp_path / "stage")
    assert again is not None
    assert_same(again[0], state(15)[0])
    assert newest is not None
    assert newest["metadata"] == {"epoch": 15}
    kept = {path.name for path in (tmp_path / "stage" / "checkpoints" / "last").iterdir()}
    assert kept == {"10", "15"}  # the damaged ones were saved again


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"step": np.array(0.0, np.float32)}, r"step: int32 \[\], not float32 \[\]"),
        ({"trace": [{"a": np.zeros((3, 1), "f4")}]}, r"trace/0/a: float32 \[3\], not .* \[3, 1\]"),
        ({"more": np.zeros(1)}, r"more: missing, not float64 \[1\]"),
        ({"trace": []}, r"trace/0/a: float32 \[3\], not missing"),
    ],
)
def test_a_whole_state_of_another_form_is_refused_not_cast(other, said, saved):
    checkpoints = checkpoint.StageCheckpoints(saved / "checkpoints")
    variables, training = state(0)
    with pytest.raises(checkpoint.CheckpointError, match=f"training: is not of this run .{said}"):
        checkpoints.restore_last(variables, {**training, **other})
    checkpoints.close()


def test_a_checkpoint_without_checksums_loads_with_one_note(saved, tmp_path, caplog):
    shutil.copytree(saved, tmp_path / "older")
    shutil.rmtree(tmp_path / "older" / "result" / "record")
    for _ in range(2):
        found = checkpoint.load(tmp_path / "older")
        assert found.pop("metadata") == METADATA
        assert_same(found, VARIABLES)
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}/older/result: has no checksums")


def test_the_record_tells_arrays_apart():
    items = {"variables": VARIABLES, "metadata": METADATA}
    saved = json.loads(json.dumps(record.make(items, {"seed": 1})))
    assert record.problem(saved, items) is None
    kernel = VARIABLES["params"]["a"]["kernel"]
    others = {
        "bytes": np.nextafter(kernel, np.float32(9)),
        "shape": kernel.reshape(3, 2),
        "type": kernel.view(np.int32),
        "place": np.flip(kernel),
    }
    for name, other in others.items():
        changed = {"params": {**VARIABLES["params"], "a": {**VARIABLES["params"]["a"]}}}
        changed["params"]["a"]["kernel"] = other
        found = record.problem(saved, {"variables": {**VARIABLES, **changed}})
        assert found is not None, name
        assert found.startswith("variables: params/a/kernel is "), name
    gone = record.problem(saved, {"variables": {"params": VARIABLES["params"]}})
    assert gone == "variables: rates/a/kernel is missing"
    wrong = record.problem(saved, {"metadata": {**METADATA, "epoch": 5}})
    assert wrong == "metadata: is not what was saved"
    assert record.problem({**saved, "run": {"seed": 2}}, {}) == "record: is not what was saved"


def test_the_run_s_configuration_is_read_from_its_newest_checkpoint(saved, tmp_path):
    assert checkpoint.recorded_run(saved.parent) is None
    checkpoint.save_result(tmp_path / "pretrain", VARIABLES, METADATA, {"seed": 1})
    checkpoint.save_result(tmp_path / "prune", VARIABLES, METADATA, {"seed": 2})
    assert checkpoint.recorded_run(tmp_path) == {"seed": 2}
    cut(tmp_path / "prune" / "result" / "record" / "metadata")
    assert checkpoint.recorded_run(tmp_path) == {"seed": 1}
