#!/bin/sh
# Makes a folder of wheels for a machine without network: benchmarks/wheels.sh [FOLDER [PYTHON]]
# They are pure Python. `python -m benchmarks.accelerator --wheels=FOLDER` takes those it lacks.
set -eu
folder=${1:-.wheels}
python=${2:-3.12}
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" \
    --dest "$folder" ml_collections torchattacks tensorboardX
ls "$folder"
