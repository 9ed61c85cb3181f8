import numpy as np
import pytest

from harp_jax.data import DataError, Split, batches_per_epoch, eval_batches, train_batches

COUNT = 53
FIELDS = ("images", "labels", "index", "valid")


@pytest.fixture
def split():
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (COUNT, 2, 2, 1), np.uint8)
    return Split(images, np.arange(COUNT, dtype=np.int32) % 7)


def flat(batch):
    """The batch without its device axis."""
    return {field: batch[field].reshape(-1, *batch[field].shape[2:]) for field in FIELDS}


def union(batches_of, process_count):
    """Global batches: the processes' parts, in order."""
    parts = [list(batches_of(process)) for process in range(process_count)]
    assert len({len(part) for part in parts}) == 1
    return [
        {field: np.concatenate([flat(part)[field] for part in step]) for field in FIELDS}
        for step in zip(*parts, strict=True)
    ]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for field in FIELDS:
            np.testing.assert_array_equal(batch[field], other[field], err_msg=field)
            assert batch[field].dtype == other[field].dtype


def train_indices(split, **arguments):
    batches = train_batches(split, batch_size=8, devices=1, **arguments)
    return np.concatenate([flat(batch)["index"] for batch in batches])


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_batches_are_the_same_however_they_are_cut(split, devices, processes):
    def train(process, devices, processes):
        return train_batches(
            split,
            seed=5,
            epoch=2,
            batch_size=16,
            devices=devices,
            process_index=process,
            process_count=processes,
        )

    def evaluate(process, devices, processes):
        return eval_batches(
            split,
            batch_size=16,
            devices=devices,
            process_index=process,
            process_count=processes,
        )

    for batches, steps in ((train, 3), (evaluate, 4)):
        single = union(lambda process, batches=batches: batches(process, 1, 1), 1)
        cut = union(
            lambda process, batches=batches: batches(process, devices, processes), processes
        )
        assert len(single) == steps
        assert_same(cut, single)
        one = next(iter(batches(0, devices, processes)))
        assert one["images"].shape == (devices, 16 // (devices * processes), 2, 2, 1)
        assert one["index"].shape == (devices, 16 // (devices * processes))


def test_dtypes_and_contents_follow_the_index(split):
    batches = [
        *train_batches(split, seed=0, epoch=0, batch_size=8, devices=2),
        *eval_batches(split, batch_size=8, devices=2),
    ]
    for batch in batches:
        assert {field: batch[field].dtype.name for field in FIELDS} == {
            "images": "uint8",
            "labels": "int32",
            "index": "int32",
            "valid": "bool",
        }
        np.testing.assert_array_equal(batch["images"], split.images[batch["index"]])
        np.testing.assert_array_equal(batch["labels"], split.labels[batch["index"]])


def test_order_is_a_function_of_seed_and_epoch(split):
    first = train_indices(split, seed=1, epoch=0)
    np.testing.assert_array_equal(train_indices(split, seed=1, epoch=0), first)
    assert not np.array_equal(train_indices(split, seed=1, epoch=1), first)
    assert not np.array_equal(train_indices(split, seed=2, epoch=0), first)
    # (0, 1) and (1, 0) are different streams too.
    assert not np.array_equal(
        train_indices(split, seed=0, epoch=1), train_indices(split, seed=1, epoch=0)
    )


def test_order_is_pinned():
    # A changed order would change every published number silently.
    split = Split(np.zeros((8, 1, 1, 1), np.uint8), np.zeros(8, np.int32))
    np.testing.assert_array_equal(train_indices(split, seed=0, epoch=0), [5, 0, 6, 1, 7, 2, 4, 3])


def test_an_epoch_visits_each_example_once_up_to_a_changing_remainder(split):
    assert batches_per_epoch(split, 8) == 6
    left_out = []
    for epoch in range(3):
        indices = train_indices(split, seed=0, epoch=epoch)
        assert len(indices) == 48
        assert len(set(indices.tolist())) == 48
        assert set(indices.tolist()) <= set(range(COUNT))
        left_out.append(frozenset(range(COUNT)) - set(indices.tolist()))
    assert len(set(left_out)) == 3


@pytest.mark.parametrize("start", [0, 1, 5, 6])
def test_start_resumes_in_mid_epoch(split, start):
    arguments = {"seed": 4, "epoch": 3, "batch_size": 8, "devices": 2}
    whole = list(train_batches(split, **arguments))
    assert_same(list(train_batches(split, **arguments, start=start)), whole[start:])


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_pads_with_invalid_examples_and_drops_none(split, processes):
    batches = union(
        lambda process: eval_batches(
            split, batch_size=24, devices=2, process_index=process, process_count=processes
        ),
        processes,
    )
    valid = np.concatenate([batch["valid"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    assert len(valid) == 72
    np.testing.assert_array_equal(valid, np.arange(72) < COUNT)
    np.testing.assert_array_equal(index[valid], np.arange(COUNT))
    np.testing.assert_array_equal(index[~valid], COUNT - 1)


def test_evaluation_without_remainder_has_no_padding(split):
    batches = list(eval_batches(split.take(slice(48)), batch_size=16, devices=4))
    assert [bool(batch["valid"].all()) for batch in batches] == [True] * 3


def test_evaluation_of_less_than_a_batch(split):
    for process, expected in ((0, [True, True, True, False]), (1, [False] * 4)):
        (batch,) = eval_batches(
            split.take(slice(3)), batch_size=8, devices=2, process_index=process, process_count=2
        )
        np.testing.assert_array_equal(batch["valid"].ravel(), expected)


def test_an_empty_split_has_no_evaluation_batch(split):
    assert list(eval_batches(split.take(slice(0)), batch_size=8, devices=2)) == []


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"batch_size": 0}, r"batch_size=0: must be at least 1"),
        ({"devices": 0}, r"devices=0: must be at least 1"),
        ({"devices": 3}, r"batch_size=8: must be a multiple of 3 \(3 devices in each of 1 proc"),
        ({"process_count": 3}, r"batch_size=8: must be a multiple of 3 \(1 devices in each of 3"),
        ({"process_count": 0}, r"process_count=0: must be at least 1"),
        ({"process_index": 1}, r"process_index=1: must be in \[0, 1\)"),
        ({"process_index": -1}, r"process_index=-1: must be in \[0, 1\)"),
        ({"batch_size": 54}, r"batch_size=54: must be at most the 53 training examples"),
        ({"start": 7}, r"start=7: must be in \[0, 6\]"),
        ({"start": -1}, r"start=-1: must be in \[0, 6\]"),
        ({"seed": -1}, r"seed=-1: must be in \[0, 2\*\*64\)"),
        ({"epoch": -1}, r"epoch=-1: must be in \[0, 2\*\*64\)"),
    ],
)
def test_training_refuses_bad_arguments_at_the_call(split, wrong, text):
    arguments = {"seed": 0, "epoch": 0, "batch_size": 8, "devices": 1} | wrong
    with pytest.raises(DataError, match=text):
        train_batches(split, **arguments)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"devices": 3}, r"batch_size=8: must be a multiple of 3"),
        ({"process_index": 2}, r"process_index=2: must be in \[0, 1\)"),
        ({"batch_size": -8}, r"batch_size=-8: must be at least 1"),
    ],
)
def test_evaluation_refuses_bad_arguments_at_the_call(split, wrong, text):
    with pytest.raises(DataError, match=text):
        eval_batches(split, **({"batch_size": 8, "devices": 1} | wrong))
