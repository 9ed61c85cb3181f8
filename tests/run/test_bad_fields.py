"""Fields of wrong types, far out of range or against each other: refused in one line."""

import json

import numpy as np
import pytest
import runs
from ml_collections import ConfigDict

from harp_jax import config as harp
from harp_jax.config.kinds import Number, Whole
from harp_jax.config.rules import OPEN, RULES, SETTINGS
from harp_jax.config.validation import check_fields, plain_numbers
from harp_jax.workdir import ownership

NOT_FINITE = float("nan"), float("inf"), -float("inf")


def changed(**fields: object) -> ConfigDict:
    """The configuration of the digits, with values of any type, as a file may make it."""
    config = runs.digits()
    for field, value in fields.items():
        section, _, name = field.rpartition(".")
        inside = config
        for part in filter(None, section.split(".")):
            inside = inside[part]
        with inside.ignore_type(), inside.unlocked():
            inside[name] = value
    return config


def refused(**fields: object) -> str:
    """The line with which a configuration is refused."""
    with pytest.raises(harp.ConfigError) as caught:
        harp.validate(changed(**fields))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fields_of(config: ConfigDict, above: str = "") -> set[str]:
    found = set()
    for name, value in config.items():
        if above + name in OPEN:
            continue
        inner = isinstance(value, ConfigDict)
        found |= fields_of(value, f"{above}{name}.") if inner else {above + name}
    return found


def test_every_field_has_a_rule():
    assert fields_of(harp.default()) == RULES.keys() | SETTINGS.keys()


@pytest.mark.parametrize("field", [*RULES, *SETTINGS])
def test_every_field_refuses_what_is_of_no_type_of_its_own(field):
    wrong = [b"bytes", {1: 2}, object, np.zeros(3), ConfigDict({"a": 1})]
    wrong += [] if (RULES | SETTINGS)[field].optional else [None]
    for value in wrong:
        assert refused(**{field: value}).startswith(f"{field}=")


def fields_by(kind: type) -> list[str]:
    return [field for field, rule in RULES.items() if isinstance(rule, kind)]


@pytest.mark.parametrize("field", fields_by(Whole))
def test_whole_numbers_are_neither_flags_nor_numbers_nor_text(field):
    for value in (True, False, 1.0, "1", 10**400, -1, *NOT_FINITE):
        text = refused(**{field: value})
        assert text.startswith(f"{field}=")
        assert "allowed are whole numbers >= " in text


@pytest.mark.parametrize("field", fields_by(Number))
def test_numbers_are_neither_flags_nor_text_nor_without_end(field):
    assert not RULES[field].accepts(True)  # a ConfigDict makes 1.0 of it
    assert not RULES[field].accepts(10**400)
    for value in ("0.1", 1e300, 1e-300, -0.5, *NOT_FINITE):
        assert refused(**{field: value}).startswith(f"{field}=")
        assert ": allowed are numbers " in refused(**{field: value})


SAID = [
    ({"attack.epsilon": 8}, "=8.0: in units of [0, 1]; did you mean 8/255 = 0.03137? allowed are"),
    ({"attack.epsilon": 1.5}, "in [0, 1]"),
    ({"attack.step_size": 2.0}, "did you mean 2/255 = 0.007843?"),
    ({"evaluate.attacks.pgd10.epsilon": 8.0}, "pgd10.epsilon=8.0: in units of [0, 1]; did you"),
    ({"evaluate.attacks.pgd10.step_size": 2.0}, "pgd10.step_size=2.0: in units of [0, 1]; did you"),
    ({"data.mean": (127.0,), "data.std": (1.0,)}, "data.mean=127.0: in units of [0, 1]; did you"),
    ({"data.mean": (0.5,), "data.std": (64,)}, "data.std=64: in units of [0, 1]; did you mean 64/"),
    ({"data.mean": (True,), "data.std": (0.5,)}, "data.mean=True: allowed are numbers"),
    ({"data.mean": 0.5}, "data.mean=0.5: allowed are numbers in [0, 1], in a tuple"),
    ({"stages": ("pretrain", 3)}, "stages=3: allowed are pretrain"),
    ({"evaluate.run": ("pgd11",)}, "evaluate.run='pgd11': did you mean 'pgd10'? allowed are"),
    ({"evaluate.run": (None,)}, "evaluate.run=None: allowed are names of attacks"),
    ({"evaluate.attacks": None}, "evaluate.attacks=None: allowed are sections"),
    ({"evaluate.attacks.pgd10": 5}, "evaluate.attacks.pgd10=5: allowed are sections"),
    ({"evaluate.attacks.pgd10.type": "PDG"}, "did you mean 'PGD'?"),
    ({"evaluate.attacks.pgd10.type": ["PGD"]}, "type=['PGD']: allowed are FGSM"),
    ({"evaluate.attacks.pgd10.random_start": 1}, "random_start=1: allowed are True, False"),
    ({"evaluate.attacks.pgd10.stepps": 1}, "stepps=1: did you mean 'steps'? allowed are the"),
    ({"evaluate.attacks.pgd10.objective": "cee"}, "objective='cee': did you mean 'ce'? allowed"),
    ({"evaluate.attacks.pgd10.norm": "l_inf"}, "norm='l_inf': did you mean 'linf'? allowed"),
    ({"evaluate.attacks.pgd10.steps": 2**31}, "allowed are whole numbers up to 2147483647"),
    ({"evaluate.attacks.pgd10.epsilon": float("nan")}, "epsilon=nan: allowed are numbers"),
    ({"trades.beta": float("inf")}, "trades.beta=inf: allowed are numbers"),
    ({"free.replays": 4.0}, "free.replays=4.0: allowed are whole numbers"),
    ({"loss": "trade"}, "loss='trade': did you mean 'trades'? allowed are natural"),
    ({"prune.loss": ""}, "prune.loss='': allowed are natural"),
    ({"model": "vgg16"}, "model='vgg16': did you mean 'vgg16_bn'? allowed are cnn"),
    ({"model": "nowhere:net"}, "model='nowhere:net': cannot import 'nowhere'"),
    ({"prune.strategy": "lamb"}, "did you mean 'lamp'? allowed are uniform"),
    ({"prune.method": None}, "prune.method=None: allowed are harp"),
    ({"prune.gamma0": float("inf"), "prune.method": "score"}, "prune.gamma0=inf: allowed"),
    ({"prune.live": 1}, "prune.live=1: allowed are True, False"),
    ({"prune.source": None}, "prune.source=None: allowed are paths"),
    ({"data.name": ""}, "data.name='': allowed are names of image sets"),
    (
        {"pretrain.epochs": 10**9},
        "pretrain.epochs=1000000000: allowed are whole numbers >= 1 and",
    ),
    ({"prun": ConfigDict({"target": 0.1})}, "prun={'target': 0.1}: is no field; did you mean 'pru"),
    ({"prune.targt": 0.1}, "prune.targt=0.1: is no field; did you mean 'prune.target'? allowed"),
    ({"prune": 5}, "prune=5: allowed are sections, {field: value}"),
    ({"own": None}, "own=None: allowed are sections, {field: value}"),
]


@pytest.mark.parametrize(("fields", "said"), SAID, ids=[str(fields) for fields, _ in SAID])
def test_what_is_meant_is_said(fields, said):
    assert said in refused(**fields)


@pytest.mark.parametrize("field", ["prune", "prune.target", "evaluate.attacks", "seed"])
def test_a_field_that_is_missing_is_named(field):
    config = changed()
    section, _, name = field.rpartition(".")
    inside = config[section] if section else config
    with inside.unlocked():
        del inside[name]
    with pytest.raises(harp.ConfigError, match=f"^{field}: is missing; a file begins with"):
        harp.validate(config)


def test_an_l2_radius_may_be_above_one():
    apgd = {"evaluate.attacks.apgd.norm": "l2", "evaluate.attacks.apgd.epsilon": 3.0}
    harp.validate(changed(**apgd))


def test_what_is_no_configuration():
    with pytest.raises(harp.ConfigError, match=r"config=5: allowed are configurations"):
        harp.validate(5)


def test_scalars_of_numpy_are_numbers():
    fields = {
        "seed": np.int64(3),
        "prune.target": np.float32(0.25),
        "prune.live": np.bool_(True),
        "data.mean": (np.float32(0.5),),
        "data.std": [np.float64(0.25)],
        "trades.beta": np.float32(6.0),
        "evaluate.attacks.pgd10.epsilon": np.float32(0.125),
        "evaluate.attacks.pgd10.steps": np.int32(4),
    }
    config = changed(**fields)
    harp.validate(config)
    plain = plain_numbers(config)
    assert plain.evaluate.attacks.pgd10.to_dict()["steps"] == 4
    assert type(plain.prune.target) is float
    assert type(plain.data.mean[0]) is float
    written = ownership.plain(plain)  # JSON has no scalars of NumPy
    assert json.loads(json.dumps(written)) == written
    assert (written["seed"], written["prune"]["live"]) == (3, True)
    assert type(config.prune.target) is np.float32  # the caller's stays as it is


def test_fields_are_checked_without_importing_a_users_module():
    check_fields(changed(model="nowhere:net", loss="nowhere:Loss"))
