"""The wheel and the source distribution: what is in them, and that both work without a checkout."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
import runs

BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # setuptools changes sys.argv
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""
PROJECT = tomllib.loads((runs.ROOT / "pyproject.toml").read_text())["project"]


def tracked():
    """The files of the checkout or of the unpacked source distribution, not what tools left."""
    if (runs.ROOT / ".git").exists():
        command = ["git", "-C", str(runs.ROOT), "ls-files"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        text = (runs.ROOT / "harp_jax.egg-info" / "SOURCES.txt").read_text()
    names = [name for name in text.splitlines() if not name.startswith("harp_jax.egg-info")]
    return [name for name in names if (runs.ROOT / name).is_file()]


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of those files."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(runs.ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """A folder with the wheel and the source distribution."""
    copy = shutil.copytree(source, tmp_path_factory.mktemp("build") / "copy")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-c", BUILD, str(out)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built):
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def unpacked(built, tmp_path_factory):
    """The folder of the unpacked source distribution."""
    (found,) = built.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(found) as archive:
        archive.extractall(folder, filter="data")
    (inner,) = folder.iterdir()
    return inner


def test_the_wheel_has_the_whole_package_and_the_configurations(wheel, source):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entries,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        scripts = archive.read(entries).decode()
    package = {f"harp_jax/{name}" for name in files(source / "harp_jax")}
    configs = {f"harp_jax/configs/{name}" for name in files(source / "configs")}
    assert found == package | configs
    assert len(configs) >= 6
    assert "harp-jax = harp_jax.main:main" in scripts


def test_the_source_distribution_is_the_checkout(unpacked, source):
    assert files(source) - files(unpacked) == set()


def test_the_version_is_everywhere_the_same(wheel):
    assert wheel.name.startswith(f"harp_jax-{PROJECT['version']}-")
    citation = (runs.ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == PROJECT["version"]


def test_every_extra_of_an_extra_exists():
    extras = PROJECT["optional-dependencies"]
    named = [re.findall(r"harp_jax\[(.*?)\]", need) for needs in extras.values() for need in needs]
    for found in filter(None, named):
        assert set(found[0].split(",")) <= extras.keys()


def installed(folder):
    """The environment of a command that finds this package in a folder alone."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_the_wheel_finds_its_configurations_without_a_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (tmp_path / "elsewhere").mkdir()
    for config, said in (
        ("configs/digits.py", "error: prune.target=2.0: allowed are numbers in (0, 1]\n"),
        ("nine", "of this package cifar_vgg, digits,"),
    ):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "harp_jax.main", f"--config={config}"),
                *("--workdir=run", "--config.prune.target=2.0"),
            ],
            cwd=tmp_path / "elsewhere",
            env=installed(site),
            capture_output=True,
            text=True,
        )
        assert said in done.stderr


@pytest.mark.slow
def test_tests_of_the_source_distribution_run(unpacked):
    quick = ["tests/test_names.py", "tests/test_imports.py", "tests/run/test_configs.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *quick],
        cwd=unpacked,
        env=installed(unpacked),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_bare_environment_with_the_wheel_trains(wheel, tmp_path):
    """Needs a package index; it finds dependencies that are not declared."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    programs = tmp_path / "venv" / "bin"
    install = [str(programs / "python"), "-m", "pip", "install", "--quiet", str(wheel)]
    subprocess.run(install, check=True)
    ours = ("PYTHONPATH", "XLA_FLAGS")  # of the tests
    users = {name: value for name, value in os.environ.items() if name not in ours}
    (tmp_path / "elsewhere").mkdir()

    def call(*command):
        done = subprocess.run(
            [str(programs / command[0]), *command[1:]],
            cwd=tmp_path / "elsewhere",
            env={**users, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert call("harp-jax", "--version") == f"harp_jax {PROJECT['version']}\n"
    call("harp-jax", "--config=configs/digits.py", "--workdir=run", *runs.SHORT)
    assert (tmp_path / "elsewhere" / "run" / "report" / "index.html").is_file()
    call("python", "-m", "harp_jax.export", "run", "--format=sparse", "--out=net.safetensors")
    assert (tmp_path / "elsewhere" / "net.safetensors").is_file()
