"""What `benchmarks.accelerator` takes from wheels on a machine without network."""

import platform
import zipfile

import pytest

from benchmarks import accelerator_process, accelerator_wheels


def test_only_wheels_of_missing_modules_are_unpacked(tmp_path, monkeypatch):
    for name in ("torchattacks-3-py3-none-any.whl", "jax-1-py3-none-any.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr(f"{name.split('-')[0]}/__init__.py", "")
    monkeypatch.setattr(accelerator_wheels, "missing", lambda _: ["torchattacks"])
    taken = accelerator_wheels.unpack(tmp_path, tmp_path / "site")
    assert taken == ["torchattacks-3-py3-none-any.whl"]
    names = sorted(path.name for path in (tmp_path / "site").iterdir())
    assert names == ["harp_jax-0.1.0.dist-info", "torchattacks"]


@pytest.mark.parametrize(
    ("tags", "taken"),
    [
        ("cp37-cp37m-manylinux_2_28_x86_64", False),
        ("cp310-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64", True),
        ("cp310-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64", False),
        ("py2.py3-none-any", True),
    ],
)
def test_wheels_of_another_python_or_machine_stay_packed(tmp_path, monkeypatch, tags, taken):
    wheel = f"pillow-13.0-{tags}.whl"
    with zipfile.ZipFile(tmp_path / wheel, "w") as file:
        file.writestr("PIL/__init__.py", "")
    monkeypatch.setattr(accelerator_wheels, "missing", lambda _: ["PIL"])
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert accelerator_wheels.unpack(tmp_path, tmp_path / "site") == [wheel] * taken


def test_damaged_wheels_are_named_and_left_out(tmp_path, monkeypatch, capsys):
    half = tmp_path / "tqdm-4-py3-none-any.whl"
    with zipfile.ZipFile(half, "w") as file:
        file.writestr("tqdm/__init__.py", "import this")
    half.write_bytes(half.read_bytes().replace(b"import this", b"import that"))
    for name in ("six-1-py3-none-any.whl", "six.whl"):
        (tmp_path / name).write_text("no wheel")
    monkeypatch.setattr(accelerator_wheels, "missing", lambda _: ["six", "tqdm"])
    assert accelerator_wheels.unpack(tmp_path, tmp_path / "site") == []
    assert not (tmp_path / "site" / "tqdm").exists()
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": left out")[0] for line in said] == [
        str(tmp_path / "six-1-py3-none-any.whl"),
        str(half),
    ]


def test_every_needed_package_can_be_carried():
    """JAX, Flax, Optax and Orbax bring the others along."""
    script = (accelerator_process.ROOT / "benchmarks" / "wheels.sh").read_text().split()
    theirs = {"absl", "etils", "flax", "jax", "optax", "orbax"}
    carried = {accelerator_wheels.MODULES.get(name, name).lower() for name in script}
    needed = {name.lower() for name in (*accelerator_wheels.NEEDED, *accelerator_wheels.FOR_RUNS)}
    assert needed - theirs <= carried
