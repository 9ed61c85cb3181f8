"""The library of native kernels: where it is kept, and what happens if that goes wrong."""

import logging
import pathlib
import subprocess
import sys

import pytest
import runs

from harp_jax import native

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")


def library(monkeypatch, folder, **variables):
    """The path of the library with this cache folder; it is compiled if needed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return native._library()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A library, compiled with options in CXX."""
    with pytest.MonkeyPatch.context() as patch:
        return library(patch, tmp_path_factory.mktemp("cache"), CXX="c++ -DHARP_JAX_TEST")


@pytest.mark.parametrize("content", [b"", b"\x7fELF", None], ids=["empty", "other", "cut off"])
def test_a_damaged_library_is_compiled_again(compiled, content, monkeypatch):
    whole = compiled.read_bytes()
    compiled.write_bytes(whole[: len(whole) // 8] if content is None else content)
    monkeypatch.setattr(subprocess, "run", fake_compiler(subprocess.run, whole))
    assert library(monkeypatch, compiled.parents[1], CXX="c++ -DHARP_JAX_TEST") == compiled
    assert compiled.read_bytes() == whole
    assert sorted(path.suffix for path in compiled.parent.iterdir()) == [".sha256", ".so"]


def fake_compiler(run, content):
    """Stands for `subprocess.run`: compiles in no time what was compiled before."""

    def call(command, **options):
        if "-o" not in command:
            return run(command, **options)
        pathlib.Path(command[-1]).write_bytes(content)
        return None

    return call


def test_a_whole_library_is_not_compiled_again(compiled, monkeypatch):
    monkeypatch.setattr(subprocess, "run", fake_compiler(subprocess.run, b"another"))
    before = compiled.read_bytes()
    assert library(monkeypatch, compiled.parents[1], CXX="c++ -DHARP_JAX_TEST") == compiled
    assert compiled.read_bytes() == before
    other = library(monkeypatch, compiled.parents[1], CXX="c++ -DOTHER")
    assert other != compiled


NOBODY = """
import logging, pathlib, sys
from harp_jax import native

def home():
    raise RuntimeError("Could not determine home directory.")

pathlib.Path.home = home
logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)
print(native.available())
"""


def test_without_a_home_folder_there_are_no_kernels():
    environment = runs.environment()
    environment.pop("XDG_CACHE_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", NOBODY], capture_output=True, text=True, env=environment, check=True
    )
    assert "native kernels: not available (Could not determine home directory.)" in done.stdout
    assert done.stdout.endswith("False\n")


def test_without_a_compiler_the_log_says_so(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with caplog.at_level(logging.INFO):
        assert native._loaded.__wrapped__() is None
    assert "native kernels: not available" in caplog.text
    assert "no-such-compiler" in caplog.text
