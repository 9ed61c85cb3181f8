"""Networks of random pieces, for what must hold of any network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (8, 8, 3)
CLASSES = 4


class Gate(nn.Module):
    """Scales channels by numbers that are computed from all of them."""

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Dense(3)(x.mean((1, 2), keepdims=True)))
        return x * nn.sigmoid(nn.Dense(x.shape[-1])(y))


class Blend(nn.Module):
    """A mixture of channels in two orders, with a learned share."""

    @nn.compact
    def __call__(self, x):
        share = self.param("share", nn.initializers.ones, ())
        return share * x + (1 - share) * nn.relu(x[..., ::-1])


class Wrapped(nn.Module):
    """Two layers inside a transformation."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1])(nn.relu(nn.Dense(5)(x)))


def _conv(draw, x, **settings):
    features = settings.pop("features", int(draw.choice([4, 6])))
    size = int(draw.choice([1, 2, 3]))
    padding = str(draw.choice(["SAME", "VALID"])) if min(x.shape[1:3]) > 4 else "SAME"
    dilation = int(draw.choice([1, 2])) if size < 3 else 1
    bias = bool(draw.random() < 0.5)
    return nn.Conv(
        features, (size, size), padding=padding, kernel_dilation=dilation, use_bias=bias, **settings
    )(x)


def _same(draw, x, groups=1):
    """A convolution that keeps the shape."""
    return nn.Conv(x.shape[-1], (3, 3), feature_group_count=groups)(x)


def _norm(draw, x, train):
    return nn.BatchNorm(not train, momentum=0.9)(x)


def _twice(draw, x, train):
    """A BatchNorm that is called again, with other channels."""
    norm = nn.BatchNorm(not train, momentum=0.9)
    return norm(x) + norm(_same(draw, x))


def _channels_first(draw, x, train):
    y = nn.relu(nn.BatchNorm(not train, momentum=0.9, axis=1)(x.transpose(0, 3, 1, 2)))
    return y.transpose(0, 2, 3, 1)


def _halves(draw, x, train):
    a, b = jnp.split(x, 2, -1)
    return a * nn.sigmoid(b)


def _pool(draw, x, train):
    if min(x.shape[1:3]) < 4:
        return x
    return nn.max_pool(x, (2, 2), (2, 2)) if draw.random() < 0.5 else nn.avg_pool(x, (2, 2), (2, 2))


def _blocks(draw, x, train):
    """Pixels to channels, each channel's together or not."""
    if min(x.shape[1:3]) % 2 or x.shape[1] != x.shape[2]:
        return x
    n, height, width, channels = x.shape
    x = x.reshape(n, height // 2, 2, width // 2, 2, channels)
    order = (0, 1, 3, 2, 4, 5) if draw.random() < 0.5 else (0, 1, 3, 5, 2, 4)
    return x.transpose(order).reshape(n, height // 2, width // 2, 4 * channels)


PIECES = {
    "conv": lambda draw, x, train: nn.relu(_conv(draw, x)),
    "dense": lambda draw, x, train: nn.gelu(nn.Dense(6)(x)),
    "norm": _norm,
    "norm twice": _twice,
    "channels first": _channels_first,
    "residual": lambda draw, x, train: x + nn.relu(_same(draw, _norm(draw, x, train))),
    "difference": lambda draw, x, train: _same(draw, x) - _same(draw, nn.relu(x)),
    "negative": lambda draw, x, train: nn.relu(x) + _same(draw, nn.relu(-x)),
    "depthwise": lambda draw, x, train: _same(draw, x, x.shape[-1]),
    "multiplier": lambda draw, x, train: _conv(
        draw, x, features=2 * x.shape[-1], feature_group_count=x.shape[-1]
    ),
    "pairs": lambda draw, x, train: _conv(
        draw, x, features=x.shape[-1] // 2, feature_group_count=x.shape[-1] // 2
    ),
    "grouped": lambda draw, x, train: _same(draw, x, 2),
    "concatenation": lambda draw, x, train: jnp.concatenate([x, nn.relu(_same(draw, x))], -1),
    "copies": lambda draw, x, train: jnp.concatenate([x, nn.sigmoid(x)], -1),
    "padded": lambda draw, x, train: jnp.pad(x, ((0, 0),) * 3 + ((0, 2),)),
    "layer norm": lambda draw, x, train: nn.LayerNorm()(x),
    "group norm": lambda draw, x, train: nn.GroupNorm(2)(x),
    "instance norm": lambda draw, x, train: nn.GroupNorm(x.shape[-1])(x),
    "gate": lambda draw, x, train: Gate()(x),
    "one gate": lambda draw, x, train: x * nn.sigmoid(nn.Dense(1)(x)),
    "blend": lambda draw, x, train: Blend()(x),
    "transposed": lambda draw, x, train: nn.sigmoid(nn.ConvTranspose(x.shape[-1], (2, 2))(x)),
    "reversal": lambda draw, x, train: x[..., ::-1],
    "halves": _halves,
    "pool": _pool,
    "blocks": _blocks,
    "sequential": lambda draw, x, train: nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(6)])(x),
    "remat": lambda draw, x, train: nn.remat(Wrapped)()(x),
    "attention": lambda draw, x, train: _attention(x),
}


def _attention(x):
    n, height, width, channels = x.shape
    y = nn.MultiHeadDotProductAttention(1)(x.reshape(n, height * width, channels))
    return y.reshape(x.shape)


class Random(nn.Module):
    """Pieces that are drawn by a seed, and a head."""

    seed: int
    length: int = 6

    @nn.compact
    def __call__(self, x, train=False):
        draw = np.random.default_rng(self.seed)
        for _ in range(self.length):
            x = PIECES[self.piece(draw, x)](draw, x, train)
        if draw.random() < 0.5:
            x = x.reshape(len(x), -1)
            x = nn.BatchNorm(not train, momentum=0.9)(x) if draw.random() < 0.5 else x
        else:
            x = x.mean((1, 2))
        return nn.Dense(CLASSES)(x)

    def piece(self, draw, x):
        even = x.shape[-1] % 2 == 0
        odd = {"pairs", "grouped", "group norm", "halves"}
        names = [name for name in PIECES if even or name not in odd]
        if x.shape[-1] > 12:
            names = ["conv", "dense", "sequential"]
        return str(draw.choice(names))


def drawn(model, seed):
    """Random variables: variances and scales above zero, nothing near zero."""
    numbers = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))

    def leaf(path, shape):
        size = max(1, int(np.prod(shape.shape[:-1])))
        if path[-1].key == "var":
            return np.float32(numbers.uniform(0.5, 1.5, shape.shape))
        return np.float32(numbers.normal(0, 1 / np.sqrt(size), shape.shape))

    return jax.tree.map_with_path(leaf, shapes)
