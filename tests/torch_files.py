"""Checkpoints in PyTorch's formats, written without PyTorch, with whatever a test wants in them."""

import io
import math
import pickle
import zipfile
from typing import NamedTuple

import numpy as np

from harp_jax.interop.tensors import DTYPES

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {dtype: name for name, dtype in DTYPES.items()}


class Raw(bytes):
    """Instructions that are put into a pickle as they are."""


class View(NamedTuple):
    """A tensor that says of its place in a storage whatever a test wants."""

    array: np.ndarray
    form: dict  # arguments of `Program.tensor`


def name(module, attribute):
    """The instruction that imports a name."""
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(module, attribute, *arguments):
    """Instructions that call what a name stands for."""
    return Raw(name(module, attribute) + Program().values(arguments) + b"tR")


class Program:
    """A pickle's instructions, and the storages that they refer to."""

    def __init__(self, order="<", older=False):
        self.order, self.older, self.storages = order, older, []

    def values(self, values):
        return b"(" + b"".join(map(self.value, values))

    def value(self, value):
        if isinstance(value, Raw):
            return bytes(value)
        if isinstance(value, np.ndarray):
            return self.tensor(value)
        if isinstance(value, View):
            return self.tensor(value.array, **value.form)
        if isinstance(value, dict):
            items = [each for item in value.items() for each in item]
            return b"}" + self.values(items) + b"u"
        if isinstance(value, list):
            return b"]" + self.values(value) + b"e"
        if isinstance(value, tuple):
            return self.values(value) + b"t"
        return pickle.dumps(value, protocol=2)[2:-1]

    def tensor(self, array, offset=0, shape=None, strides=None, count=None):
        """A tensor with all of the array's numbers, or with the place and form that are given."""
        key, numbers = str(len(self.storages)), np.ascontiguousarray(array).reshape(-1)
        bits = numbers.view(f"u{array.dtype.itemsize}").astype(
            f"{self.order}u{array.dtype.itemsize}"
        )
        self.storages.append((key, array.size, bits.tobytes()))
        steps = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        pid = ("storage", name("torch", KINDS[array.dtype]), key, "cpu", count or array.size)
        pid = self.value((*pid, None) if self.older else pid) + b"Q"
        form = (shape or array.shape, strides or tuple(steps))
        rest = (False, call("collections", "OrderedDict"))
        function = name("torch._utils", "_rebuild_tensor_v2")
        return function + b"(" + pid + self.values((offset, *form, *rest))[1:] + b"tR"


def zipped(content, *, order="<", entries=None, compression=zipfile.ZIP_STORED, root="archive"):
    """A zip archive as PyTorch writes it since 1.6.

    Args:
        content: What is in it, or the whole pickle if it is `Raw`.
        order: Of the bytes of a number, '<' or '>'.
        entries: Further entries, or others in place of the usual ones.
        compression: Of all entries.
        root: Name of the folder in it.
    """
    program = Program(order)
    pickled = bytes(content) if isinstance(content, Raw) else dumped(program, content)
    found = {f"{root}/data.pkl": pickled}
    found[f"{root}/byteorder"] = b"little" if order == "<" else b"big"
    found |= {f"{root}/data/{key}": content for key, _, content in program.storages}
    found[f"{root}/version"] = b"3\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for entry, each in (found | (entries or {})).items():
            archive.writestr(entry, each)
    return file.getvalue()


def dumped(program, value):
    return b"\x80\x02" + program.value(value) + b"."


def older(content, *, order="<"):
    """A file as PyTorch wrote it before 1.6."""
    program = Program(order, older=True)
    system = {"protocol_version": 1001, "little_endian": order == "<", "type_sizes": {"int": 4}}
    pickled = bytes(content) if isinstance(content, Raw) else dumped(program, content)
    parts = [pickle.dumps(each, protocol=2) for each in (MAGIC, 1001, system)]
    parts += [pickled, pickle.dumps([key for key, _, _ in program.storages], protocol=2)]
    word = "little" if order == "<" else "big"
    parts += [n.to_bytes(8, word) + content for _, n, content in program.storages]
    return b"".join(parts)
