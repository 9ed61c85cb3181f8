#!/bin/sh
# Makes a folder of wheels for a machine without network: benchmarks/wheels.sh [FOLDER [PYTHON]]
# Pillow and safetensors are for PYTHON and this kind of machine, the others are pure Python.
# `python -m benchmarks.accelerator --wheels=FOLDER` takes those it lacks.
set -eu
folder=${1:-.wheels}
python=${2:-3.12}
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" \
    --dest "$folder" \
    ml_collections jaxtyping wadler_lindig tqdm pillow safetensors torchattacks tensorboardX
ls "$folder"
