"""A trained network with all that a file says about it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax

from harp_jax import checkpoint, models
from harp_jax.attacks.groups import group_size, pays_in_groups
from harp_jax.config import of_workdir
from harp_jax.config.sections import load_data
from harp_jax.data import DataError
from harp_jax.data.augment import to_unit
from harp_jax.data.datasets import check_here
from harp_jax.export.errors import FileError, one_line
from harp_jax.export.images import checked
from harp_jax.export.native_network import for_few_images
from harp_jax.models.sparse import fastest
from harp_jax.pruning.layers import bake, leaves_by_path, tree_of_leaves, weight_paths
from harp_jax.types import Images, Logits, LogitsFn, Variables
from harp_jax.workdir import files, ownership

_LOGGER = logging.getLogger(__name__)

NETWORK_FIELDS = ("model", "num_classes", "image_shape", "normalization", "compute_dtype", "width")
_GROUP = 64  # images that a small sparse network computes at once, see `attacks.groups`
T = TypeVar("T")

_OWN_FIELDS = ("stage", "epoch", "dataset", "seed")
_LARGEST_SIDE, _MOST_CLASSES = 2**16, 2**24


class Trained(NamedTuple):
    """A network, its masked variables, and what a file says about it.

    Attributes:
        network: A linen module, as `harp_jax.models.create` makes it.
        variables: 'params' and, with BatchNorm, 'batch_stats': NumPy float32, masks applied.
        metadata: 'model', 'num_classes', 'image_shape' (height, width, channels),
            'normalization', 'compute_dtype', 'width' (1 if missing), and whatever else files should
            say, as JSON has it.
    """

    network: nn.Module
    variables: dict[str, Any]
    metadata: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        height, width, channels = self.metadata["image_shape"]
        return height, width, channels

    def logits_fn(self) -> LogitsFn:
        """Returns the compiled function from NHWC images in [0, 1] to logits."""
        logits_fn = models.logits_fn(self.network, self.variables)
        return jax.jit(checked(logits_fn, self.image_shape))

    def sparse_logits_fn(self) -> LogitsFn:
        """Returns `logits_fn` in the form that is fastest here.

        See `models.sparse.fastest`, and `native_network.for_few_images` for NumPy images.
        """
        if jax.default_backend() != "cpu" or self.metadata["compute_dtype"] != "float32":
            return self.logits_fn()
        logits_fn = models.logits_fn(fastest(self.network, self.variables), self.variables)

        def in_groups(images: Images) -> Logits:
            size = group_size(len(images), _GROUP)
            if size == len(images):
                return logits_fn(images)
            groups = images.reshape(-1, size, *images.shape[1:])
            return lax.map(logits_fn, groups).reshape(len(images), -1)

        small = pays_in_groups(self.variables["params"])
        return for_few_images(
            jax.jit(checked(in_groups if small else logits_fn, self.image_shape)),
            self.network,
            self.variables,
            self.image_shape,
            1 - counts(self.variables)["sparsity"],
        )

    def in_float32(self) -> "Trained":
        """Returns the network with features in float32, whatever they were in training."""
        if self.metadata["compute_dtype"] == "float32":
            return self
        metadata = {**self.metadata, "compute_dtype": "float32"}
        return Trained(create(metadata), self.variables, metadata)


def read(path: epath.PathLike, *, model: str | None = None) -> Trained:
    """Reads a network of a run.

    Args:
        path: A path that `harp_jax.checkpoint.load` takes; a workdir means its last complete stage.
        model: See `harp_jax.load`.

    Returns:
        The network with its masks applied. Its metadata are those of `harp_jax.load`, and
        'weights' (of all kernels), 'kept' (those that are not zero), 'sparsity' (1 - kept /
        weights), 'source' (the workdir's name) and 'revision' (git's, of the run's code).

    Raises:
        CheckpointError: See `harp_jax.load`.
    """
    variables = checkpoint.load(path)
    found = variables.pop("metadata")
    folder = checkpoint.find(path)
    network = network_of(found, folder, model)
    plain = jax.tree.map(np.asarray, jax.device_get(jax.jit(bake)(variables)))
    metadata = {name: found[name] for name in (*NETWORK_FIELDS, *_OWN_FIELDS) if name in found}
    metadata = {"normalization": None, "compute_dtype": "float32", "width": 1.0} | metadata
    metadata |= counts(plain)
    workdir = workdir_of(path)
    if workdir is not None:
        claim = ownership.read_claim(workdir) or {}
        metadata |= {"source": workdir.name, "revision": claim.get("revision")}
    return Trained(network, plain, metadata)


def counts(plain: Variables) -> dict[str, Any]:
    """Counts all weights, and those that are not zero; see `layers.weight_paths`."""
    leaves = leaves_by_path(plain["params"])
    kernels = [leaves[path] for path in weight_paths(plain["params"])]
    weights = sum(kernel.size for kernel in kernels)
    kept = sum(int(np.count_nonzero(kernel)) for kernel in kernels)
    return {"weights": weights, "kept": kept, "sparsity": round(1 - kept / max(weights, 1), 6)}


def network_of(metadata: Mapping[str, Any], folder: epath.Path, model: str | None) -> nn.Module:
    """Builds the network of a checkpoint.

    Args:
        metadata: The checkpoint's.
        folder: The checkpoint.
        model: See `harp_jax.load`.

    Raises:
        CheckpointError: If they name no network, or one of the user's own that is not `model`.
    """
    if "model" not in metadata:
        raise checkpoint.CheckpointError(
            f"{folder}: does not say which network it is of; allowed are complete stages, and any"
            " checkpoint with harp_jax.checkpoint.load"
        )
    refused = _refusal(metadata["model"], model)
    if refused:
        raise checkpoint.CheckpointError(f"{folder}: {refused}")
    return create(metadata)


def _refusal(name: str, model: str | None) -> str | None:
    """Returns why a network is not built: the caller named another one, or not one's own."""
    if name == model or (model is None and name in models.MODELS):
        return None
    return another_network(name, model)


def another_network(name: Any, model: str | None) -> str:
    """Returns the error of a file or checkpoint whose network has this name, not `model`."""
    trust = "" if name in models.MODELS else ", if you trust that module"
    return f"is of the network {name!r}, model={model!r}; allowed is model={name!r}{trust}"


def create(metadata: Mapping[str, Any]) -> nn.Module:
    """Builds the network that metadata describe; see `harp_jax.models.create` for errors."""
    return models.create(
        metadata["model"],
        metadata["num_classes"],
        normalization=metadata.get("normalization"),
        dtype=metadata.get("compute_dtype", "float32"),
        width=metadata.get("width", 1.0),
    )


def for_every_batch(trained: Trained, trace: Callable[[LogitsFn, Any], T]) -> T:
    """Traces a network with a symbolic batch size.

    A network that needs to know the size, for `len(images)` say, is traced image by image instead.

    Args:
        trained: The network.
        trace: A function of the network's function and the form of its images.

    Returns:
        The trace.

    Raises:
        FileError: If neither trace can be made.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *trained.image_shape), np.float32)
    logits_fn = models.logits_fn(trained.network, trained.variables)
    try:
        return trace(logits_fn, images)
    except Exception as error:  # a user's network may raise anything
        by_image = jax.vmap(lambda image: logits_fn(image[None])[0])
        try:
            return trace(by_image, images)
        except Exception:
            raise FileError(f"no trace for every batch size ({one_line(error)})") from error


def rebuilt(
    found: Mapping[str, tuple[int, ...]],
    arrays: Callable[[], Mapping[str, np.ndarray]],
    metadata: dict[str, Any],
    model: str | None,
) -> Trained:
    """Makes the network of a file from its arrays.

    Args:
        found: Shapes of the arrays by path, 'params/conv1/kernel'.
        arrays: Reads the arrays; it is called when the shapes have been found to fit.
        metadata: Metadata of the file.
        model: See `harp_jax.load`.

    Returns:
        The network.

    Raises:
        FileError: If the metadata describe no network, or the arrays are not that network's.
    """
    network = described(metadata, model)
    made = shapes(network, metadata["image_shape"])
    expected = {path: leaf.shape for path, leaf in flat(made).items()}
    if found != expected:
        paths = sorted(found.keys() | expected.keys())
        path = next(path for path in paths if found.get(path) != expected.get(path))
        raise FileError(
            f"{path}: has the shape {found.get(path)}; allowed is that of the network,"
            f" {expected.get(path)}"
        )
    leaves = arrays()
    return Trained(network, tree({path: leaves[path] for path in expected}), metadata)


def described(metadata: Mapping[str, Any], model: str | None) -> nn.Module:
    """Builds the network that a file's metadata describe.

    Raises:
        FileError: If they describe none, or one of the user's own that `model` does not name.
    """
    shape, classes = metadata.get("image_shape"), metadata.get("num_classes")
    if not (
        isinstance(shape, list)
        and len(shape) == 3
        and all(type(n) is int and 0 < n < _LARGEST_SIDE for n in shape)
    ):
        raise FileError(f"image_shape={shape!r}: allowed are three sizes below {_LARGEST_SIDE}")
    if type(classes) is not int or not 2 <= classes <= _MOST_CLASSES:
        raise FileError(f"num_classes={classes!r}: allowed are 2 to {_MOST_CLASSES}")
    if not isinstance(metadata.get("model"), str):
        raise FileError(f"model={metadata.get('model')!r}: allowed are names of networks")
    refused = _refusal(metadata["model"], model)
    if refused:
        raise FileError(refused)
    try:
        return create(metadata)
    except (OverflowError, TypeError, ValueError) as error:
        raise FileError(f"no network of this package: {one_line(error)}") from error


def shapes(network: nn.Module, image_shape: Sequence[int]) -> dict[str, Any]:
    """Finds the variables of a network as `jax.ShapeDtypeStruct`s, without computing any.

    Args:
        network: A network as `harp_jax.models.create` makes it.
        image_shape: Height, width and channels.

    Raises:
        FileError: If the network cannot take such images.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    try:
        made: Any = jax.eval_shape(network.init, jax.random.key(0), images)
        for path, leaf in flat(made).items():
            if not leaf.size:  # pooling leaves no pixel, and the kernel is empty
                raise ValueError(f"nothing is left of the images for {path!r}")
    except Exception as error:  # networks of one's own may raise anything
        divides = isinstance(error, ZeroDivisionError)  # older JAX refuses empty kernels so
        reason = "nothing is left of the images" if divides else one_line(error)
        raise FileError(
            f"image_shape={image_shape}: allowed are sizes of the network ({reason})"
        ) from error
    return dict(made)


def flat(variables: Variables) -> dict[str, Any]:
    """Returns the leaves of variables by path, 'params/conv1/kernel', in order of the paths.

    Raises:
        FileError: If a layer has a '/' in its name.
    """
    leaves = {"/".join(path): leaf for path, leaf in leaves_by_path(variables).items()}
    for path in leaves_by_path(variables):
        if any("/" in part for part in path):
            raise FileError(f"layer {path!r}: allowed are names without '/'")
    return dict(sorted(leaves.items()))


def tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables of leaves by path; the inverse of `flat`."""
    return tree_of_leaves({tuple(path.split("/")): leaf for path, leaf in leaves.items()})


def workdir_of(path: epath.PathLike) -> epath.Path | None:
    """Returns the workdir of a stage's result; None for any other checkpoint."""
    folder = checkpoint.find(path)
    if folder.name != files.RESULT:
        return None
    return folder.parent.parent


def test_images(path: epath.PathLike, count: int) -> np.ndarray | None:
    """Loads the first test images of the run that a network is of.

    Args:
        path: A path that `read` takes.
        count: Number of images, >= 1.

    Returns:
        Images [count or fewer, height, width, channels] in [0, 1]; None where there is no run, or
        its data are not on this machine, which the log says. Nothing is downloaded.
    """
    workdir = workdir_of(path)
    if workdir is None or ownership.read_claim(workdir) is None:
        return None
    try:
        config: Any = of_workdir.get_config(str(workdir))
        check_here(config.data.name, config.data.directory)
        test = load_data(config).test
    except (DataError, OSError) as error:
        _LOGGER.warning(
            "%s: has no test images here (%s); bring its data to this machine, or pass `images`",
            workdir,
            one_line(error),
        )
        return None
    return np.asarray(to_unit(jnp.asarray(test.take(slice(count)).images)))
