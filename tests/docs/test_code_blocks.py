"""The code of README and of the documentation: Python runs, commands have flags that exist."""

import ast
import importlib.util
import re
import shlex
import sys

import pages
import pytest
import runs
from absl import flags
from ml_collections import config_flags

from harp_jax import config as harp
from harp_jax.config import packaged

PAGES = pages.pages()
PYTHON = [path for path in PAGES if pages.blocks(path, "python")]
COMMANDS = [
    (block.place, command)
    for path in PAGES
    for block in pages.blocks(path, "sh")
    for command in pages.commands(block)
]
OWN_FLAGS = ("workdir", "distributed", "coordinator", "processes", "process")
EXAMPLES = pages.DOCS / "examples"


@pytest.fixture
def checkout(tmp_path, tmp_path_factory, monkeypatch):
    """A folder to work in, with a finished run where the pages say that there is one."""
    finished = runs.finished(tmp_path_factory.getbasetemp())
    (tmp_path / "runs").mkdir()
    for name in ("digits", "mnist"):
        (tmp_path / "runs" / name).symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.mark.parametrize("path", PYTHON, ids=pages.name_of)
def test_python_of_a_page_runs(path, checkout):
    names = {"__name__": "page"}
    for block in pages.blocks(path, "python"):
        tree = ast.parse(block.code, block.place)
        if not block.marked:
            exec(compile(tree, block.place, "exec"), names)


def test_the_formulas_give_what_their_page_says():
    (block,) = pages.blocks(pages.DOCS / "concepts" / "method.md", "python")
    names = {}
    exec(block.code, names)
    for value, text in (
        (float(names["rate"]), "0.284"),
        (float(names["loss"]), "0.516"),
        (float(names["state"].gamma), "0.02"),
    ):
        assert value == pytest.approx(float(text), abs=5e-4)
        assert f"# {text}" in block.code
    assert f"# {names['mask'].astype(int).tolist()}" in block.code


def parsed(arguments, monkeypatch):
    """The configuration that a command line gives; absl's errors where a flag is unknown."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    for name in OWN_FLAGS:
        flag = "bool" if name == "distributed" else "string"
        getattr(flags, f"DEFINE_{flag}")(name, None, "", flag_values=values)
    if not any(argument.startswith("--config=") for argument in arguments):
        arguments = ["--config=configs/digits.py", *arguments]  # that of the workdir
    file = "--config="
    arguments = [
        file + packaged.find(argument.removeprefix(file)) if argument.startswith(file) else argument
        for argument in arguments
    ]
    monkeypatch.setattr(sys, "argv", ["harp_jax", *arguments])  # fields are looked up there
    rest = values(sys.argv)
    assert rest == ["harp_jax"], f"unknown arguments {rest[1:]}"
    assert values["workdir"].value is not None, "no --workdir"
    return values.config


def inner(command):
    """A command, or those that it gives to another machine."""
    words = shlex.split(command, comments=True)
    if words[0] != "gcloud":
        return [words]
    given = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
    return [shlex.split(part) for text in given for part in text.split("&&")]


# ml_collections loads configuration files in a way that Python will drop.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(("place", "command"), COMMANDS, ids=[place for place, _ in COMMANDS])
def test_a_command_can_be_given(place, command, monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    monkeypatch.syspath_prepend(EXAMPLES)
    for words in inner(command):
        while re.fullmatch(r"[A-Z]+=\S*", words[0]):
            del words[0]
        program = words[0].rpartition("/")[2]
        if program == "make":
            text = (runs.ROOT / "Makefile").read_text()
            assert all(re.search(rf"^{target}:", text, re.MULTILINE) for target in words[1:])
        elif program == "harp-jax":
            check_python(["-m", "harp_jax.main", *words[1:]], monkeypatch)
        elif program == "python":
            check_python(words[1:], monkeypatch)
        else:
            assert program in ("pip", "tfds", "gcloud", "cd", "git", "uv"), f"{place}: {command}"


def check_python(words, monkeypatch):
    if words[0] == "-c":
        ast.parse(words[1])
    elif words[0] != "-m":
        assert (runs.ROOT / words[0]).is_file()
    else:
        assert importlib.util.find_spec(words[1]) is not None
    if "harp_jax.main" in words:
        pages_own = [word for word in words if "my_network" in word]
        harp.validate(parsed([word for word in words[2:] if word not in pages_own], monkeypatch))


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_flag_that_does_not_exist_is_found(monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    for flag in ("--config.prune.tarrget=0.1", "--workdirs=runs", "runs"):
        with pytest.raises((AttributeError, KeyError, flags.Error, AssertionError)):
            parsed(["--workdir=w", "--config=configs/digits.py", flag], monkeypatch)


INLINE = re.compile(r"--config\.([a-z_0-9.]+)=")


@pytest.mark.parametrize("path", PAGES, ids=pages.name_of)
def test_fields_in_the_text_exist(path):
    config = harp.default()
    for field in INLINE.findall(path.read_text()):
        section = config
        for name in field.split("."):
            assert name in section, f"{path.name}: --config.{field}"
            section = section[name]
