"""Attacks against each other and against an independent implementation, on a trained network."""

import functools

import jax
import numpy as np
import pytest
from test_battery import attacked

from harp_jax import attacks, models
from harp_jax.attacks import norms

EPSILON = {"linf": 0.06, "l2": 0.4}
CE = attacks.APGD(EPSILON["linf"], steps=20)
TARGETED = attacks.APGD(EPSILON["linf"], objective="dlr_targeted", steps=20)
PGD = attacks.PGD(EPSILON["linf"], EPSILON["linf"] / 4, steps=10)


@pytest.fixture(scope="module")
def setting(digits):
    variables, images, labels = digits
    network = jax.jit(models.logits_fn(models.create("tiny", 10), variables))
    return network, images, labels, variables


@pytest.fixture(scope="module")
def robust(setting):
    """Robust accuracy under an attack; each attack runs once."""
    network, images, labels, _ = setting

    @functools.cache
    def accuracy(attack, examples):
        keys = jax.random.split(jax.random.key(4), examples)
        found = attacked(attack, network, images[:examples], labels[:examples], keys)
        return float((network(found).argmax(-1) == labels[:examples]).mean())

    return accuracy


@pytest.mark.slow
def test_the_stronger_attack_finds_more(setting, robust):
    network, images, labels, _ = setting
    natural = (network(images).argmax(-1) == labels).mean()
    weakest_first = (attacks.FGSM(EPSILON["linf"]), PGD, TARGETED)
    fgsm, pgd, targeted = (robust(attack, 300) for attack in weakest_first)
    assert 0.1 < targeted <= pgd <= fgsm < natural
    assert robust(CE, 300) <= pgd


@pytest.mark.slow
def test_autoattack_is_as_strong_as_its_parts(setting, robust):
    network, images, labels, _ = setting
    keys = jax.random.split(jax.random.key(4), 300)
    strongest = attacks.AutoAttack(EPSILON["linf"], steps=20, queries=100)
    survived = np.ones(300, bool)
    for place, attack in enumerate(strongest.parts().values()):
        part = attacked(attack, network, images[:300], labels[:300], norms.fold_keys(keys, place))
        survived &= np.asarray(network(part).argmax(-1) == labels[:300])
    assert robust(strongest, 300) == pytest.approx(survived.mean(), abs=1e-6)
    assert 0.1 < survived.mean() <= robust(PGD, 300)


def torch_network(variables):
    """`tiny` in PyTorch with the same weights; BatchNorm with mean 0 and variance 1."""
    import torch
    import torch.nn.functional as nn

    params = jax.tree.map(np.asarray, variables["params"])

    def tensor(array):
        return torch.tensor(np.array(array))

    class Tiny(torch.nn.Module):
        def forward(self, x):
            for number in (1, 2):
                kernel = params[f"conv{number}"]["kernel"].transpose(3, 2, 0, 1)
                norm = params[f"norm{number}"]
                scale = tensor(norm["scale"])[:, None, None] / (1 + 1e-5) ** 0.5
                x = scale * nn.conv2d(x, tensor(kernel), padding=1)
                x = nn.max_pool2d(nn.relu(x + tensor(norm["bias"])[:, None, None]), 2)
            x = x.permute(0, 2, 3, 1).flatten(1)
            hidden, last = params["dense1"], params["dense2"]
            x = nn.relu(x @ tensor(hidden["kernel"]) + tensor(hidden["bias"]))
            return x @ tensor(last["kernel"]) + tensor(last["bias"])

    return Tiny().eval()


@pytest.fixture(scope="module")
def torch_setting(setting):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchattacks")
    network, images, labels, variables = setting
    theirs = torch_network(variables)
    batch = torch.tensor(np.moveaxis(np.array(images), -1, 1))
    with torch.no_grad():
        logits = theirs(batch).numpy()
    np.testing.assert_allclose(logits, network(images), rtol=0, atol=1e-4)
    return theirs, batch, torch.tensor(np.array(labels), dtype=torch.long)


# With enough steps and examples that random starts decide about less than the tolerance.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm", "objective"),
    [("APGD", "linf", "ce"), ("APGD", "l2", "dlr"), ("APGDT", "linf", "dlr_targeted")],
)
def test_is_not_weaker_than_torchattacks(torch_setting, robust, name, norm, objective):
    torchattacks = pytest.importorskip("torchattacks")
    theirs, images, labels = torch_setting
    attack = attacks.APGD(EPSILON[norm], norm, objective, steps=50)
    settings = {} if name == "APGDT" else {"loss": objective}
    settings["norm"] = {"linf": "Linf", "l2": "L2"}[norm]
    other = getattr(torchattacks, name)(theirs, eps=attack.epsilon, steps=50, **settings)
    accuracy = float((theirs(other(images, labels)).argmax(1) == labels).float().mean())
    ours = robust(attack, len(images))
    print(f"robust accuracy: ours {ours:.4f}, torchattacks' {accuracy:.4f}")
    assert ours <= accuracy + 0.002 + 1e-6
