"""The command line.

python -m harp_jax.main --config=configs/mnist_cnn.py --workdir=runs/mnist [--config.FIELD=VALUE]
"""

import logging
import re
import sys
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

from harp_jax import config as harp
from harp_jax import parallel
from harp_jax.config import of_workdir
from harp_jax.interrupt import InterruptedRunError
from harp_jax.run import experiment
from harp_jax.training.loop import TrainingDivergedError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File of the configuration; put it before any --config.FIELD=VALUE. Left out: the one that the"
    " workdir's run recorded.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of this run: checkpoints, metrics, results and report. May be gs://.",
    required=True,
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a TPU pod or cluster (found automatically)."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where the processes cannot find each other."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, with --coordinator.")


def _main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        print(f"error: unknown arguments {' '.join(arguments[1:])}; see --help", file=sys.stderr)
        return 2
    if _DISTRIBUTED.value or _COORDINATOR.value:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    config = _CONFIG.value
    if not (_DISTRIBUTED.value or _COORDINATOR.value):
        batch_sizes = config.batch_size, config.evaluate.batch_size
        parallel.one_device_per_core(batch_sizes, config.devices)
    if config.get("compilation_cache"):
        _keep_compiled_programs(str(epath.Path(config.compilation_cache).expanduser()))
    logger = _logger()
    try:
        with logging_redirect_tqdm([logger]):
            experiment.run(config, _WORKDIR.value)
    except InterruptedRunError as stop:
        print(f"interrupted: {stop}", file=sys.stderr)
        return 130
    except (ValueError, TrainingDivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _logger() -> logging.Logger:
    """Logs lines of this package to stderr, and only errors of the libraries below it."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    logger = logging.getLogger("harp_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    return logger


def _keep_compiled_programs(directory: str) -> None:
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _parse(arguments: list[str]) -> list[str]:
    """Parses the flags; errors in flags or configuration become one line without traceback."""
    try:
        others = flags.FLAGS(_with_recorded_config(arguments))
        missing = set(harp.default()) - set(_CONFIG.value)
        if missing:
            raise ValueError(
                f"no {', '.join(sorted(missing))}; a file begins with harp_jax.config.default()"
            )
        _CONFIG.value.lock()
        return others
    except flags.Error as error:  # the last line of an exception from a configuration file
        text = [line for line in str(error).splitlines() if line.strip()][-1]
        text = re.sub(r"^[\w.]+Error: ", "", text)
    except (AttributeError, KeyError) as error:
        what: Any = error
        while isinstance(what, Exception) and what.args:  # unwrap nested errors
            what = what.args[0]
        what = str(what).partition(". Other fields present")[0]
        text = f"--config: {what}; allowed are the fields of harp_jax/config/defaults.py"
    except (TypeError, ValueError, OSError) as error:
        text = f"--config: {error}"
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        if isinstance(error, SystemExit) and _asks_for_help(arguments):
            raise
        text = f"--config: the file raises {type(error).__name__}: {error}"
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(2)


def _asks_for_help(arguments: list[str]) -> bool:
    names = {argument.lstrip("-").partition("=")[0] for argument in arguments}
    return bool({"help", "helpfull", "helpshort"} & names)


def _with_recorded_config(arguments: list[str]) -> list[str]:
    """Adds the configuration recorded in the workdir if --config is not given."""
    names = [argument.lstrip("-").partition("=")[0] for argument in arguments]
    workdir = None
    for place, argument in enumerate(arguments):
        if argument.startswith("-") and names[place] == "workdir":
            _, given, value = argument.partition("=")
            workdir = value if given else (arguments[place + 1 :] or [None])[0]
    if workdir == "":
        raise flags.IllegalFlagValueError("--workdir='': allowed are folders")
    if workdir is None or "config" in names or _asks_for_help(arguments):
        return arguments
    return [arguments[0], f"--config={of_workdir.__file__}:{workdir}", *arguments[1:]]


def main() -> None:
    """Runs the command line and exits."""
    flags.mark_flag_as_required("config")
    app.run(_main, flags_parser=_parse)


if __name__ == "__main__":
    main()
