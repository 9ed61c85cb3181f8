#!/bin/sh
# Makes a folder of wheels for a machine without network:
#     benchmarks/wheels.sh [FOLDER [PYTHON [MACHINE]]]
# with .wheels, 3.12 and x86_64 (or aarch64) for those left out. `python -m benchmarks.accelerator
# --wheels=FOLDER` takes those it lacks: all but JAX, Flax, Optax, Orbax and PyTorch, 25 MB.
set -eu
folder=${1:-.wheels}
python=${2:-3.12}
machine=${3:-x86_64}
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" \
    --platform "manylinux_2_28_$machine" --platform "manylinux_2_27_$machine" \
    --platform "manylinux_2_17_$machine" --platform "manylinux2014_$machine" --dest "$folder" \
    ml_collections jaxtyping wadler_lindig tqdm pillow safetensors torchattacks tensorboardX \
    contourpy cycler fonttools jinja2 kiwisolver markupsafe matplotlib packaging pyparsing \
    python_dateutil six
ls "$folder"
