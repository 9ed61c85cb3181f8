"""Files of every kind: what is in them comes out to the bit, and nothing in them is executed."""

import contextlib
import datetime
import json
import pickle
import tarfile
import types
import zipfile
from collections import Counter, defaultdict, deque

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_files
from etils import epath
from torch_files import Program, Raw, View, call, name

from harp_jax.export import FileError
from harp_jax.interop import containers, pickles
from harp_jax.interop.containers import opened
from harp_jax.interop.tensors import Tensor

RNG = np.random.default_rng(0)
DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_)
ARRAYS = {
    f"layer.{np.dtype(dtype).name}": (100 * RNG.random((3, 2, 5))).astype(dtype) for dtype in DTYPES
} | {"scalar": np.array(1.5, np.float32), "empty": np.zeros((0, 3), np.float32)}
WRITERS = {"zip": torch_files.zipped, "older": torch_files.older}


@pytest.fixture
def written(tmp_path):
    """Writes a file and returns its path."""

    def write(content):
        path = epath.Path(tmp_path) / "net.pth"
        path.write_bytes(content)
        return path

    return write


def read(path):
    """Reads everything in a file."""
    with opened(path) as content:
        for tensor in content.values() if isinstance(content, dict) else ():
            if isinstance(tensor, Tensor):
                tensor.array()


def refused(path):
    """The line with which a file is refused, at the latest when its arrays are read."""
    with pytest.raises(FileError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300
    return text


def check(path, find=lambda content: content):
    with opened(path) as content:
        found = find(content)
        assert found.keys() == ARRAYS.keys()
        for key, expected in ARRAYS.items():
            array = found[key].array()
            assert array.dtype == expected.dtype
            assert array.shape == expected.shape
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_arrays_of_every_type_and_byte_order(write, order, written):
    content = {"epoch": 3, "state_dict": ARRAYS, "best": 0.5, "names": ["a", None, True, (1, 2)]}
    path = written(write(content, order=order))
    check(path, lambda found: found["state_dict"])
    with opened(path) as found:
        assert (found["epoch"], found["names"]) == (3, ["a", None, True, (1, 2)])


def test_safetensors(written):
    check(written(safetensors.numpy.save(ARRAYS)))


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_views_of_a_storage(write, written):
    base = np.arange(24, dtype=np.float32)
    view = View(base, {"offset": 3, "shape": (2, 3), "strides": (1, 4)})
    with opened(written(write({"view": view}))) as found:
        expected = np.lib.stride_tricks.as_strided(base[3:], (2, 3), (4, 16))
        np.testing.assert_array_equal(found["view"].array(), expected)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_settings_are_passed_over(write, written):
    namespace = Raw(
        name("argparse", "Namespace") + b")\x81}" + Program().value("a") + b"K\x01sb"
    )  # made without a call, then given attributes
    encoded = call("_codecs", "encode", "\x00\x01", "latin1")
    scalar = call("numpy.core.multiarray", "scalar", call("numpy", "dtype", "f8"), encoded)
    parameter = Raw(
        name("torch._utils", "_rebuild_parameter") + b"(" + Program().value(np.float32(1).item())
        + b"\x89N" + b"tR"
    )  # fmt: skip
    ordered = Raw(call("collections", "OrderedDict") + b"}" + Program().value("v") + b"K\x01sb")
    content = {
        "args": namespace,
        "best": scalar,
        "parameter": parameter,
        "ordered": ordered,
        "pairs": call("collections", "OrderedDict", [["a", 1], ["b", 2]]),
        "size": call("torch", "Size", (1, 2)),
        "device": call("torch", "device", "cuda", 0),
        "type": name("torch", "float32"),
        7: "a key that is a number",
    }
    with opened(written(write(content))) as found:
        assert found["args"] is found["best"] is found["size"] is pickles.INERT
        assert (found["parameter"], found["ordered"], found["pairs"]) == (1.0, {}, {"a": 1, "b": 2})
        assert found[7] == "a key that is a number"


@pytest.mark.parametrize(
    "value",
    [
        {"milestones": Counter([3, 3, 5])},  # of MultiStepLR
        defaultdict(list, {1: [2]}),
        defaultdict(dict),
        deque([1, 2], 5),
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC).replace(tzinfo=None),
        datetime.date(2026, 1, 2),
        datetime.timedelta(3),
        types.SimpleNamespace(a=1, b=[2]),
        [bytearray(b"ab"), 1 + 2j, range(3), slice(1, 2), {1, 2}, frozenset([3])],
        [2**2100, np.arange(3.0), np.float32(2)],
        int,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_settings_of_python_are_passed_over(value, protocol, written):
    content = {"state_dict": [1, 2], "other": value}
    path = written(torch_files.zipped(Raw(pickle.dumps(content, protocol))))
    with opened(path) as found:
        assert found["state_dict"] == [1, 2]


class Hostile:
    """Would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w')",))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", [*WRITERS, "pickle"])
def test_nothing_is_executed(kind, protocol, written, tmp_path):
    trap = tmp_path / "executed"
    pickled = pickle.dumps({"state_dict": Hostile(trap)}, protocol)
    write = WRITERS.get(kind, bytes)
    text = refused(written(write(Raw(pickled))))
    said = "which no checkpoint needs" if protocol == 0 else "names 'builtins.exec'; allowed are"
    if protocol == 2:
        said = "names '__builtin__.exec'; allowed are"
    assert (said in text) or (protocol == 0 and kind == "pickle" and "is no checkpoint" in text)
    assert not trap.exists()


@pytest.mark.parametrize(
    "attribute",
    ["os.system", "builtins.getattr", "torch.load", "torch.storage._load_from_bytes",
     "functools.partial", "numpy.load", "torch._utils._rebuild_wrapper_subclass", "torch.hub.load"],
)  # fmt: skip
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_other_names_are_refused_even_if_nothing_calls_them(write, attribute, written):
    module, _, last = attribute.rpartition(".")
    content = {"a": ARRAYS["scalar"], "b": name(module, last)}
    assert f"pickle: names {attribute!r}; allowed are tensors" in refused(written(write(content)))


def test_names_from_the_stack_are_refused_too(written):
    pickled = b"\x80\x04" + Program().value("posix") + Program().value("system") + b"\x93."
    assert "names 'posix.system'" in refused(written(torch_files.zipped(Raw(pickled))))


HOSTILE = {
    "a call of a text": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "a call of a type": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "attributes of nothing": b"\x80\x02Nb.",
    "entries of a list": b"\x80\x02](K\x01K\x02u.",
    "items of a dict": b"\x80\x02}(K\x01e.",
    "a storage from nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))tR.",
    "no mark": b"\x80\x02K\x01t.",
    "an unknown place of the memory": b"\x80\x02h\x07.",
    "a long text that is cut off": b"\x80\x02X\xff\xff\xff\x7fa.",
    "an unknown instruction": b"\x80\x02\xff.",
    "no end": b"\x80\x02}",
    "extensions": b"\x80\x02\x82\x01.",
    "a reference to a name": b"\x80\x02ctorch\nFloatStorage\nQ.",
    "numbers as words": b"\x80\x02I01\n.",
}


@pytest.mark.parametrize("pickled", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_pickles_that_no_checkpoint_has(write, pickled, written):
    text = refused(written(write(Raw(pickled))))
    assert "pickle" in text or "damaged" in text


def test_a_huge_place_of_the_memory_takes_no_memory(written):
    pickled = b"\x80\x02}" + b"r" + (2**32 - 1).to_bytes(4, "little") + b"."
    with opened(written(torch_files.zipped(Raw(pickled)))) as found:
        assert found == {}


def test_keys_that_are_nested_are_left_out(written):
    pickled = b"\x80\x02}" + b")" + 100_000 * b"\x85" + b"K\x01s."
    with opened(written(torch_files.zipped(Raw(pickled)))) as found:
        assert found == {}


def test_a_pickle_that_is_too_large(written, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_BYTES", 1000)
    assert "1,000" in refused(written(torch_files.zipped({"a": "x" * 2000})))
    assert "1,000" in refused(written(torch_files.older({"a": "x" * 2000})))


FORMS = {
    "beyond its end": {"offset": 1},
    "a negative place": {"offset": -1},
    "too large": {"shape": (7,), "strides": (1,)},
    "repeated numbers": {"shape": (1000, 1000), "strides": (0, 0)},
    "negative strides": {"shape": (6,), "strides": (-1,)},
    "another number of axes": {"shape": (6,), "strides": (1, 1)},
    "a huge axis": {"shape": (2**62,), "strides": (1,)},
    "many axes": {"shape": (1,) * 9, "strides": (1,) * 9},
    "a declared size": {"count": 2**30},
    "a declared size beyond all memory": {"count": 2**60},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_tensors_outside_of_their_storage(write, form, written):
    content = write({"a": View(np.zeros(6, np.float32), form)})
    assert "damaged: " in refused(written(content))


def test_storages_that_are_not_there(written):
    content = torch_files.zipped(ARRAYS, entries={"archive/data/0": b""})
    assert "damaged: has 0 bytes for a storage" in refused(written(content))
    content = content.replace(b"archive/data/3", b"archive/data/x")
    assert "damaged: " in refused(written(content))


def test_zip_bombs(written, monkeypatch):
    packed = torch_files.zipped(
        {"a": np.zeros(10**6, np.float32)}, compression=zipfile.ZIP_DEFLATED
    )
    assert len(packed) < 10_000
    assert "is compressed or encrypted; allowed are plain ones" in refused(written(packed))
    monkeypatch.setattr(containers, "MOST_ENTRIES", 5)
    assert "entries; allowed are 5 at most" in refused(written(torch_files.zipped(ARRAYS)))


def test_entries_that_share_their_bytes(written):
    """Every entry of the directory is 10^6 bytes long, and all are the same bytes."""
    content = torch_files.zipped({}, entries={f"archive/data/{n}": bytes(10**6) for n in range(3)})
    with zipfile.ZipFile(written(content)) as archive:
        places = {each.filename: each.header_offset for each in archive.infolist()}
    directory = content.index(b"PK\x01\x02")
    first, second = (places[f"archive/data/{n}"] for n in (0, 1))
    end = places["archive/data/2"] if places["archive/data/2"] > second else second
    shared = content[directory:].replace(
        end.to_bytes(4, "little"), first.to_bytes(4, "little")
    ).replace(second.to_bytes(4, "little"), first.to_bytes(4, "little"))  # fmt: skip
    cut = content[:second]
    shared = shared[:-6] + len(cut).to_bytes(4, "little") + shared[-2:]
    text = refused(written(cut + shared))
    assert "declares" in text or "damaged" in text


def test_archives_of_something_else(written):
    for entries, said in (
        ({"archive/constants.pkl": b""}, "is a TorchScript program"),
        ({"other/data.pkl": b""}, "without PyTorch's data.pkl"),
        ({"archive/byteorder": b"middle"}, "byteorder=b'middle': allowed are little and big"),
    ):
        assert said in refused(written(torch_files.zipped({}, entries=entries)))
    entries, packed = {"archive/code/net.py": b"x"}, zipfile.ZIP_DEFLATED  # as PyTorch packs code
    text = refused(written(torch_files.zipped({}, entries=entries, compression=packed)))
    assert "is a TorchScript program" in text


@pytest.mark.parametrize("write", [*WRITERS.values(), safetensors.numpy.save])
def test_files_that_are_cut_off(write, written):
    content = write(ARRAYS)
    for length in (*range(0, 60, 7), len(content) // 3, len(content) // 2, len(content) - 1):
        assert refused(written(content[:length]))


@pytest.mark.slow
def test_flipped_bytes_give_arrays_or_one_line(written):
    """Of 300 damaged files of each kind, none ends in anything but a refusal or arrays."""
    rng = np.random.default_rng(1)
    for write in (*WRITERS.values(), safetensors.numpy.save):
        whole = bytearray(write(ARRAYS))
        for _ in range(300):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 3):
                damaged[place] = rng.integers(256)
            with contextlib.suppress(FileError):
                read(written(bytes(damaged)))


def test_other_files(written, tmp_path):
    assert "is no checkpoint; allowed are PyTorch's zip archives" in refused(written(b"x" * 300))
    assert "is no checkpoint" in refused(written(b""))
    assert "is a pickle, but not PyTorch's" in refused(written(pickle.dumps({"a": 1}, 2)))
    assert "is no file; allowed are" in refused(epath.Path(tmp_path))
    assert "is no file; allowed are" in refused(epath.Path(tmp_path) / "missing.pth")
    with tarfile.open(tmp_path / "net.tar", "w") as archive:
        archive.add(__file__, "sys_info")
    assert "is a tar archive, PyTorch's oldest format" in refused(epath.Path(tmp_path) / "net.tar")
    header = json.dumps(
        {"a\x1b": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}
    ).encode()
    assert "a?: has the type F8_E4M3" in refused(
        written(len(header).to_bytes(8, "little") + header + b"\0")
    )


def test_a_file_that_is_too_large(written, monkeypatch):
    monkeypatch.setattr(containers, "MOST_BYTES", 100)
    assert "allowed are 100 at most" in refused(written(torch_files.zipped(ARRAYS)))
