"""Reads the pickle in a PyTorch checkpoint without unpickling: it imports and calls nothing.

A pickle is a program. This one is not run by Python's unpickler, whose classes and memory a file
could use against its reader, but by an interpreter of the few instructions that checkpoints have.
It knows the names below. Names of tensors become `tensors.Tensor`; those of settings, which no
network needs, become `INERT`; any other name is an error.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from harp_jax.export.errors import FileError, one_line
from harp_jax.interop.tensors import DTYPES, tensor

MOST_BYTES = 2**24  # of a pickle; that of a network has less than a hundredth


class Name(NamedTuple):
    """A name that a pickle imports, such as 'collections.OrderedDict'."""

    text: str


class _Inert:
    """Stands for settings: nothing can be read from it."""


INERT = _Inert()

_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_WRAPPED = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_DICTS = ("collections.OrderedDict", "collections.defaultdict")
# Python's own types, of which defaultdict has one; none of them is called.
_BUILTINS = (
    *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list"),
    *("long", "range", "set", "slice", "str", "tuple", "unicode", "xrange"),
)
_TYPES = (
    *("bfloat16", "bool", "complex64", "complex128", "float16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8"),
)
_SETTINGS = (
    *(f"{module}.{name}" for module in ("__builtin__", "builtins") for name in _BUILTINS),
    *(f"torch.{name}" for name in _TYPES),
    "_codecs.encode",
    "argparse.Namespace",
    "collections.Counter",  # of MultiStepLR
    "collections.deque",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "torch.Size",
    "torch.device",
    "types.SimpleNamespace",
)
_STORAGES = {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
_KNOWN = {*_TENSORS, *_WRAPPED, *_DICTS, *_SETTINGS, *_STORAGES}


def read(file: io.BufferedIOBase, persistent: Callable[[tuple[Any, ...]], Any]) -> Any:
    """Reads one pickle.

    Args:
        file: Open where the pickle begins; afterwards where it ends.
        persistent: Makes a storage of what the file says of it.

    Returns:
        Of dicts, lists, tuples, numbers, texts, `tensors.Tensor`, `Name` and `INERT`. Entries of
        dicts whose keys are no texts or numbers are left out.

    Raises:
        FileError: If it has other names or instructions, is cut off, or is larger than
            `MOST_BYTES`.
    """
    machine, start = _Machine(persistent), file.tell()
    limited: Any = _Limited(file, MOST_BYTES)
    try:
        for operation, argument, place in pickletools.genops(limited):
            step = _STEPS.get(operation.name)
            if step is None:
                raise FileError(
                    f"pickle: has the instruction {operation.name} at {place}, which no"
                    " checkpoint needs"
                )
            step(machine, argument)
        return machine.stack.pop()
    except (EOFError, IndexError, KeyError, TypeError, UnicodeError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        place = file.tell() - start
        raise FileError(f"damaged: its pickle at {place} ({one_line(error)[:80]})") from error


class _Limited:
    """A file that ends after some bytes."""

    def __init__(self, file: io.BufferedIOBase, most: int):
        self._file, self._left = file, most

    def read(self, count: int) -> bytes:
        return self._counted(self._file.read(self._allowed(count)))

    def readline(self) -> bytes:
        return self._counted(self._file.readline(self._allowed(1000)))

    def tell(self) -> int:
        return self._file.tell()

    def _allowed(self, count: int) -> int:
        if not 0 <= count <= self._left:
            raise FileError(f"pickle: is larger than {MOST_BYTES:,} bytes, or cut off")
        return count

    def _counted(self, content: bytes) -> bytes:
        self._left -= len(content)
        return content


class _Machine:
    """The stack and the memory of a pickle's program."""

    def __init__(self, persistent: Callable[[tuple[Any, ...]], Any]):
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        self.persistent = persistent

    def to_mark(self) -> list[Any]:
        """Takes everything above the last mark, and the mark."""
        height = self.marks.pop()
        found = self.stack[height:]
        del self.stack[height:]
        return found

    def name(self, text: str) -> None:
        if text not in _KNOWN:
            raise FileError(
                f"pickle: names {text[:80]!r}; allowed are tensors, their storages, dicts and plain"
                " settings (save the state_dict alone)"
            )
        self.stack.append(Name(text))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name):
            raise ValueError("a call of something that has no name")
        if function.text in _TENSORS:
            self.stack.append(tensor(*arguments[:4]))
        elif function.text in _WRAPPED:
            self.stack.append(arguments[0])
        elif function.text in _DICTS:
            made: dict[Any, Any] = {}
            if arguments and isinstance(arguments[0], list):  # pairs, as Python 2 wrote them
                _put(made, [each for pair in arguments[0] for each in tuple(pair)])
            self.stack.append(made)
        elif function.text in _SETTINGS:
            self.stack.append(INERT)
        else:
            raise ValueError(f"a call of {function.text}")

    def refer(self) -> None:
        found = self.stack.pop()
        if not isinstance(found, tuple):
            raise ValueError("a reference to no storage")
        self.stack.append(self.persistent(found))


def _put(target: Any, items: list[Any]) -> None:
    if target is INERT:
        return
    if type(target) is not dict or len(items) % 2:
        raise ValueError("entries of something that is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, str | int | float | bytes | None):
            target[key] = value


def _append(target: Any, items: list[Any]) -> None:
    if target is INERT:
        return
    if type(target) is not list:
        raise ValueError("items of something that is no list")
    target.extend(items)


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, argument: Any) -> None:
        found = [machine.stack.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(found)))

    return step


def _of_marked(target: Callable[[Any, list[Any]], None]) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, argument: Any) -> None:
        items = machine.to_mark()
        target(machine.stack[-1], items)

    return step


def _of_last(count: int, target: Callable[[Any, list[Any]], None]) -> Any:
    def step(machine: _Machine, argument: Any) -> None:
        items = [machine.stack.pop() for _ in range(count)][::-1]
        target(machine.stack[-1], items)

    return step


def _remember(machine: _Machine, place: Any) -> None:
    machine.memo[len(machine.memo) if place is None else place] = machine.stack[-1]


def _frozen(machine: _Machine, argument: Any) -> None:
    machine.to_mark()
    machine.stack.append(INERT)


def _leave_out(machine: _Machine, argument: Any) -> None:
    """Takes the attributes of an object from the stack; the object stays without them."""
    machine.stack.pop()


def _stack_name(machine: _Machine, argument: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise ValueError("a name that is no text")
    machine.name(f"{module}.{name}")


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, argument: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"), _push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"), _push),
    **dict.fromkeys(("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _push),
    "BYTEARRAY8": _push,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, n: _push(machine, machine.memo[n])),
    "NONE": lambda machine, argument: _push(machine, None),
    "NEWTRUE": lambda machine, argument: _push(machine, True),
    "NEWFALSE": lambda machine, argument: _push(machine, False),
    "MARK": lambda machine, argument: machine.marks.append(len(machine.stack)),
    "EMPTY_DICT": lambda machine, argument: _push(machine, {}),
    "EMPTY_LIST": lambda machine, argument: _push(machine, []),
    "EMPTY_SET": lambda machine, argument: _push(machine, INERT),
    "FROZENSET": _frozen,
    "EMPTY_TUPLE": lambda machine, argument: _push(machine, ()),
    "TUPLE": lambda machine, argument: _push(machine, tuple(machine.to_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _of_last(1, _append),
    "APPENDS": _of_marked(_append),
    "ADDITEMS": _of_marked(_append),
    "SETITEM": _of_last(2, _put),
    "SETITEMS": _of_marked(_put),
    "GLOBAL": lambda machine, text: machine.name(text.replace(" ", ".", 1)),
    "STACK_GLOBAL": _stack_name,
    "REDUCE": lambda machine, argument: machine.call(),
    "NEWOBJ": lambda machine, argument: machine.call(),
    "BUILD": _leave_out,
    "BINPERSID": lambda machine, argument: machine.refer(),
}
