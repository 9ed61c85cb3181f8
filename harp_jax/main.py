"""The command line.

python -m harp_jax.main --config=configs/mnist_cnn.py --workdir=runs/mnist [--config.FIELD=VALUE]

The command harp-jax is the same. It exits with 0; 1 for an error of the run, 2 for bad arguments;
75 if another process is gone, 130 after Ctrl-C and 143 after SIGTERM, once the state is saved: the
same command goes on.
"""

import difflib
import errno
import importlib.metadata
import logging
import os
import pathlib
import re
import signal
import sys
import textwrap
import traceback
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import ConfigDict, config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

from harp_jax import checkpoint, native, parallel, peers
from harp_jax import config as harp
from harp_jax.config import fields, of_workdir, packaged, recipes
from harp_jax.config.rules import RULES
from harp_jax.config.validation import check_fields
from harp_jax.interrupt import InterruptedRunError
from harp_jax.run import experiment
from harp_jax.training.loop import TrainingDivergedError
from harp_jax.workdir import WriteError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File of the configuration, or the name of one of this package's; put it before any"
    " --config.FIELD=VALUE. Left out: the one that the workdir's run recorded.",
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
_ALLOWED = {"int": "whole numbers", "float": "numbers", "bool": "true, false"}  # by type of flag

_KEPT = "what was saved before is whole, and the same command goes on from it once this is repaired"
_CONFIGURATIONS = "allowed are configurations, as of harp_jax.config.default()"


def _main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        print(f"error: unknown arguments {' '.join(arguments[1:])}; see --help", file=sys.stderr)
        return 2
    config = _CONFIG.value
    try:
        check_fields(config)  # before the sizes are used that it checks
        recipes.check_given(config, config_flags.get_override_values(flags.FLAGS["config"]))
    except harp.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    wrong = peers.wrong_flags(
        _DISTRIBUTED.value, _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    )
    if wrong is not None:
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    if _DISTRIBUTED.value or _COORDINATOR.value:
        if not peers.is_child():
            return peers.watch(_saved)
        peers.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if not (_DISTRIBUTED.value or _COORDINATOR.value):
        batch_sizes = config.batch_size, config.evaluate.batch_size
        parallel.one_device_per_core(batch_sizes, config.devices)
    native.return_freed_memory_after_compiling()
    if config.compilation_cache:
        _keep_compiled_programs(str(epath.Path(config.compilation_cache).expanduser()))
    logger = _logger()
    _say_errors_once()
    try:
        with logging_redirect_tqdm([logger]), peers.ending_with_others(_saved):
            experiment.run(config, _WORKDIR.value)
    except InterruptedRunError as stop:
        print(f"interrupted: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt as second:  # the first signal asked the run to save and stop
        print(
            f"interrupted: stopped at once; {_saved()}; the same command goes on from there",
            file=sys.stderr,
        )
        return 128 + (second.args or (signal.SIGINT,))[0]
    except WriteError as error:
        print(f"error: {error}; {_KEPT}", file=sys.stderr)
        return 1
    except (ValueError, TrainingDivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _saved() -> str:
    return checkpoint.saved(_WORKDIR.value)


def _logger() -> logging.Logger:
    """Logs lines of this package to stderr, and only errors of the libraries below it."""
    logger = logging.getLogger("harp_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    return logger


def _say_errors_once() -> None:
    """Keeps Orbax from printing errors that it also raises, and what follows from them."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    default = sys.unraisablehook

    def hook(found: Any) -> None:
        # TensorStore still answers the event loop of a checkpoint that could not be written.
        if str(found.exc_value) != "Event loop is closed":
            default(found)

    sys.unraisablehook = hook


def _keep_compiled_programs(directory: str) -> None:
    """Keeps compiled programs in a folder; one that cannot be written is passed over, and said."""
    try:
        epath.Path(directory).mkdir(parents=True, exist_ok=True)
        if os.path.isdir(directory) and not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "no permission")
    except OSError as error:
        print(
            f"compilation_cache={directory!r}: cannot be written ({error.strerror or error});"
            " programs are compiled again",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _parse(arguments: list[str]) -> list[str]:
    """Parses the flags; errors in flags or configuration become one line without traceback."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    _answer(arguments)
    arguments = _with_path_of_config(arguments)
    try:
        others = flags.FLAGS(_with_recorded_config(arguments))
        config = _CONFIG.value
        if not isinstance(config, ConfigDict):
            getattr(config, "lock", None)  # raises the error of a file that cannot be opened
            raise ValueError(f"get_config() returns {config!r}; {_CONFIGURATIONS}")
        missing = set(harp.default()) - set(config)
        if missing:
            raise ValueError(
                f"no {', '.join(sorted(missing))}; a file begins with harp_jax.config.default()"
            )
        config.lock()
        return others
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        if isinstance(error, SystemExit) and _asks_for_help(arguments):
            raise
        text = _in_a_line(error, arguments)
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(2)


def _in_a_line(error: BaseException, arguments: list[str]) -> str:
    """Says what is wrong with the flags, the overrides or the configuration's file."""
    file = (_value_of(arguments, "config") or "").partition(":")[0]
    raised = _raised_in(file, error)
    if raised:
        return raised
    if "null bytes" in str(error):
        return f"--config={file}: is no Python file; {packaged.allowed(file)}"
    if isinstance(error, flags.Error):
        return _of_flags(error, file)
    if isinstance(error, AttributeError | KeyError):
        wrong = "has no get_config()" if "'get_config'" in str(error) else _innermost(error)
        return _unknown_field(arguments) or f"--config={file}: {wrong}; {_CONFIGURATIONS}"
    cause = error.__cause__ or error
    if isinstance(cause, OSError):
        reason = "cannot be read" if pathlib.Path(file).exists() else "is not there"
        return f"--config={file}: {reason}; {packaged.allowed(file)}"
    return f"--config={file}: {error}"


def _raised_in(file: str, error: BaseException) -> str | None:
    """Returns "FILE:LINE: Error: text" of an error that a configuration's file raised."""
    each: BaseException | None = error
    while file and each is not None:
        frames = traceback.extract_tb(each.__traceback__)
        lines = [frame.lineno for frame in frames if _same(frame.filename, file)]
        if isinstance(each, SyntaxError) and each.filename and _same(each.filename, file):
            return f"{file}:{each.lineno}: {type(each).__name__}: {each.msg}"
        if lines:
            said = _innermost(each)
            return f"{file}:{lines[-1]}: {type(each).__name__}{': ' if said else ''}{said}"
        each = each.__cause__ or each.__context__
    return None


def _same(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _innermost(error: BaseException) -> str:
    """Returns the text of an error; ConfigDict puts one error into another."""
    what: Any = error
    while isinstance(what, BaseException) and what.args:
        what = str(what) if isinstance(what, OSError) else what.args[0]
    text, _, fields = str(what).partition(". Other fields present")
    hint = re.search(r"Did you mean .*", fields)
    return f"{text}. {hint[0]}" if hint else text


def _of_flags(error: flags.Error, file: str) -> str:
    if "flag --workdir=" in str(error) and "must have a value" in str(error):
        return "--workdir=None: allowed are folders"
    if file and "must have a value other than None" in str(error):
        return f"--config={file}: get_config() returns None; {_CONFIGURATIONS}"
    if file and "get_config() takes 0 positional" in str(error):
        return f"--config={file}: takes no argument after ':'; allowed is --config={file}"
    # The last line of an exception from a configuration of the package.
    text = [line for line in str(error).splitlines() if line.strip()][-1]
    wrong = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    if wrong and " as a ConfigDict: " in text:
        allowed = f"allowed are flags of its fields, --config.{wrong[1]}.FIELD=VALUE"
        return f"{wrong[1]}={wrong[2]!r}: is a section; {allowed}"
    parser = flags.FLAGS[f"config.{wrong[1]}"].parser if wrong else None
    if wrong and parser is not None and parser.flag_type() in _ALLOWED:
        rule, allowed = RULES.get(wrong[1]), f"allowed are {_ALLOWED[parser.flag_type()]}"
        ratio = re.fullmatch(r"(\d{1,9})/([1-9]\d{0,8})", wrong[2])
        number = int(ratio[1]) / int(ratio[2]) if ratio else None
        fits = number is not None and (rule is None or rule.accepts(number))
        hint = f", such as {number:.6g}" if fits else ""
        if rule is not None and parser.flag_type() != "bool":
            allowed = rule.allowed(wrong[2])
        return f"{wrong[1]}={wrong[2]!r}: {allowed}{hint}"
    return re.sub(r"^[\w.]+Error: ", "", text)


def _unknown_field(arguments: list[str]) -> str | None:
    """Names the first override of a field that the configuration does not have."""
    path = _value_of(_with_recorded_config(arguments), "config")
    try:
        config = flags.FLAGS["config"].parser.parse(path or "")
    except Exception:  # a user's file may raise anything; then no override is to blame
        return None
    if not isinstance(config, ConfigDict):
        return f"--config={path}: get_config() returns {config!r}; {_CONFIGURATIONS}"
    given = [argument.lstrip("-") for argument in arguments if argument.startswith("-")]
    for argument in (each for each in given if each.startswith("config.")):
        field, _, value = argument.removeprefix("config.").partition("=")
        section, above = config, ""
        for name in field.split("."):
            if not isinstance(section, ConfigDict):
                return f"{field}={value}: is no field; {above[:-1]!r} is no section"
            if name not in section:
                close = [each for each in section if name and each.startswith(name)]
                close = difflib.get_close_matches(name, section, n=1) or close
                hint = f"did you mean {above}{close[0]}? " if close else ""
                fields = ", ".join(above + each for each in section) or "those that the file sets"
                return f"{field}={value}: is no field; {hint}allowed are {fields}"
            section, above = section[name], f"{above}{name}."
    return None


def _answer(arguments: list[str]) -> None:
    """Prints the version or the help if it is asked for, and exits."""
    if "--version" in arguments:
        print(f"harp_jax {importlib.metadata.version('harp_jax')}")
        sys.exit(0)
    if {"--help", "-help", "-h"} & set(arguments):
        try:
            print(_help(), flush=True)
        except BrokenPipeError:  # its reader has seen enough; Python would say so at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _help() -> str:
    """Returns the flags and all fields of the configuration, each with its words."""
    lines = [(__doc__ or "").strip(), "", f"Configurations: {', '.join(packaged.names())}", ""]
    for holder in (_CONFIG, _WORKDIR, _DISTRIBUTED, _COORDINATOR, _PROCESSES, _PROCESS):
        words = textwrap.wrap(flags.FLAGS[holder.name].help, 94)
        lines += [f"  --{holder.name}", *(f"      {line}" for line in words)]
    lines += ["  --version", "      Print the version of this package.", ""]
    lines.append("Fields of the configuration with their defaults, which the files override:\n")
    return "\n".join([*lines, fields.text()])


def _asks_for_help(arguments: list[str]) -> bool:
    names = {argument.lstrip("-").partition("=")[0] for argument in arguments}
    return bool({"helpfull", "helpshort"} & names)


def _value_of(arguments: list[str], flag: str) -> str | None:
    """Returns the last value of a flag, given as --FLAG=VALUE or --FLAG VALUE."""
    value = None
    for place, argument in enumerate(arguments):
        name, given, text = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == flag:
            value = text if given else (arguments[place + 1 :] or [None])[0]
    return value


def _with_path_of_config(arguments: list[str]) -> list[str]:
    """Replaces the name of one of the package's configurations by the path of its file."""
    found = list(arguments)
    for place, argument in enumerate(arguments):
        name, given, file = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name != "config":
            continue
        if given:
            found[place] = f"--config={packaged.find(file)}"
        elif place + 1 < len(found):
            found[place + 1] = packaged.find(found[place + 1])
    return found


def _with_recorded_config(arguments: list[str]) -> list[str]:
    """Adds the configuration recorded in the workdir if --config is not given."""
    names = [argument.lstrip("-").partition("=")[0] for argument in arguments]
    workdir = _value_of(arguments, "workdir")
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
