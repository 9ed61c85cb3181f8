"""The command line of imports.

python -m harp_jax.interop import net.pth --model=resnet18 --out=runs/imported
"""

import argparse
import sys
from typing import Any

from harp_jax.interop import import_checkpoint, inspect
from harp_jax.models import MODELS

_ASKED = ("num_classes", "width", "image_shape", "key", "ignore")
_IMPORTED = ("target", "alpha", "rate", "normalization", *_ASKED)


def main(arguments: list[str] | None = None) -> int:
    """Imports a checkpoint or compares one with a network; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "inspect":
            report = inspect(given.checkpoint, given.model, **_settings(given, _ASKED))
            print("\n".join(report.lines()))
            return 0 if report.problem() is None else 1
        settings = _settings(given, _IMPORTED)
        found = import_checkpoint(given.checkpoint, given.model, given.out, **settings)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(found.report.lines()))
    field = "prune" if found.metadata["stage"] == "pretrain" else "finetune"
    print(f"{given.out}: {found.metadata['stage']}; go on with --config.{field}.source={given.out}")
    return 0


def _settings(given: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(given, name)) is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harp_jax.interop",
        description="Brings networks in from checkpoints in PyTorch's formats.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    bring = commands.add_parser("import", help="write a checkpoint's network as a workdir")
    look = commands.add_parser("inspect", help="compare a checkpoint's keys with a network")
    for each in (bring, look):
        each.add_argument("checkpoint", metavar="CHECKPOINT", help="file to read")
        each.add_argument("--model", required=True, choices=MODELS, help="its network")
        each.add_argument(
            "--num-classes", type=int, help="number of logits; the file's if left out"
        )
        each.add_argument("--width", type=float, help="factor of its channels; 1 if left out")
        each.add_argument(
            "--image-shape", type=_sizes, metavar="H,W,C", help="of the images; the network's usual"
        )
        each.add_argument("--key", help="where the arrays are: LEVEL or LEVEL:PREFIX")
        each.add_argument(
            "--ignore", action="append", metavar="KEY", help="beginning of keys to leave out"
        )
    bring.add_argument("--out", required=True, metavar="WORKDIR", help="folder to write")
    bring.add_argument("--target", type=float, help="HARP's pruned files: the target rate k")
    bring.add_argument("--alpha", type=float, help="HARP's pruned files: alpha; 0.1 if left out")
    bring.add_argument("--rate", type=float, help="HYDRA's pruned files: the rate k; 1: dense")
    bring.add_argument(
        "--normalization",
        type=_normalization,
        metavar="NAME|MEAN/DEVIATION",
        help="none, cifar10, svhn, imagenet, or numbers as 0.5,0.5,0.5/0.2,0.2,0.2",
    )
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        allowed = "allowed are height,width,channels, as 32,32,3"
        raise argparse.ArgumentTypeError(f"{text}: {allowed}") from None


def _normalization(text: str) -> Any:
    if "/" not in text:
        return text
    try:
        return [[float(number) for number in part.split(",")] for part in text.split("/")]
    except ValueError:
        allowed = "allowed are means/deviations, as 0.5,0.5,0.5/0.2,0.2,0.2"
        raise argparse.ArgumentTypeError(f"{text}: {allowed}") from None


if __name__ == "__main__":
    sys.exit(main())
