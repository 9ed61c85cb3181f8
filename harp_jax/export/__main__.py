"""The command line of exports.

python -m harp_jax.export WORKDIR --format=sparse --out=net.safetensors [--stage=prune]
"""

import argparse
import sys

from etils import epath

from harp_jax.export import FORMATS, Written, write
from harp_jax.export.sparse_file import DTYPES


def main(arguments: list[str] | None = None) -> int:
    """Writes a file and says how large and how exact it is; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m harp_jax.export", description="Writes the network of a run to a file."
    )
    parser.add_argument("workdir", help="folder of the run")
    parser.add_argument("--format", required=True, choices=FORMATS, help="format of the file")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write")
    parser.add_argument("--stage", help="stage of the network; the last complete one if left out")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="type of the kernels")
    parser.add_argument("--model", metavar="MODULE:NAME", help="name of a network of your own")
    given = parser.parse_args(arguments)
    source = epath.Path(given.workdir)
    if given.stage is not None:
        source /= given.stage
    try:
        done = write(source, given.out, given.format, dtype=given.dtype, model=given.model)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(_sentence(done))
    return 0


def _sentence(done: Written) -> str:
    found = done.metadata
    share = done.bytes / (4 * found["weights"])
    return (
        f"{done.path}: {done.bytes:,} bytes ({share:.2%} of {found['weights']:,} float32 weights),"
        f" {found['kept']:,} weights kept; logits differ by {done.difference:.2g} of"
        f" {done.largest:.3g} at most, on {done.images} {'test' if done.real else 'random'} images"
    )


if __name__ == "__main__":
    sys.exit(main())
