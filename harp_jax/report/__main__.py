"""The command line of the report.

python -m harp_jax.report WORKDIR [WORKDIR ...] --out=DIR
"""

import argparse
import sys

from harp_jax.report import ReportError, compare, write


def main(arguments: list[str] | None = None) -> int:
    """Writes the page of one run, or one that compares several; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m harp_jax.report",
        description="Writes the page of a run, or one page that compares several.",
    )
    parser.add_argument("workdir", nargs="+", help="folder of a run")
    parser.add_argument("--out", metavar="DIR", help="folder of the page; needed for several runs")
    given = parser.parse_args(arguments)
    if len(given.workdir) > 1 and given.out is None:
        parser.error(f"--out=None: allowed with {len(given.workdir)} runs are folders")
    try:
        if len(given.workdir) > 1:
            page = compare(given.workdir, given.out)
        else:
            page = write(given.workdir[0], given.out)
    except (OSError, ReportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
