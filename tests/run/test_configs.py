"""The configurations of configs/: each is valid, and those of the paper are the authors'."""

import importlib.util

import pytest
import runs

from harp_jax.config import ConfigError, load, packaged, validate


def get_config(file, *name):
    return load(":".join((file, *name)))


FILES = sorted(path.stem for path in (runs.ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_file_is_valid(file):
    validate(get_config(file))


@pytest.mark.parametrize("given", ["digits", "digits.py", "configs/digits.py"])
def test_the_packages_files_have_names(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert packaged.names() == FILES
    assert packaged.find(given) == str(runs.ROOT / "configs" / "digits.py")
    assert packaged.find(f"{given}:a:b").endswith("digits.py:a:b")
    assert load(given).model == "tiny"


def test_a_file_that_is_there_comes_before_one_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.py").write_text("def get_config(name='none'):\n    return name\n")
    assert packaged.find("digits.py") == "digits.py"
    assert (load("digits.py"), load("digits.py:mine"), load("digits.py:")) == ("none", "mine", "")
    assert load("digits").model == "tiny"


@pytest.mark.parametrize("given", ["own/digits.py", "/digits.py", "digit", "digits.txt", ""])
def test_other_names_are_no_files_of_the_package(given):
    assert packaged.find(given) == given
    with pytest.raises(ConfigError, match=r"is not there; allowed .* of this package cifar_vgg, d"):
        load(given)


@pytest.mark.parametrize("given", ["digit", "own/digits.py"])
def test_the_name_that_is_near_is_said(given):
    with pytest.raises(ConfigError, match=r"svhn_vgg; did you mean 'digits'\?$"):
        load(given)
    with pytest.raises(
        ValueError, match=r"did you mean 'svhn-wrn_28_4-mart-99'\? allowed are DATA"
    ):
        get_config("paper", "svhn-wrn_284-mart-99")


def test_a_file_without_a_configuration(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match=r"has no get_config\(\); allowed are"):
        load(str(tmp_path / "empty.py"))


def test_every_experiment_of_the_paper_is_valid():
    spec = importlib.util.spec_from_file_location("paper", runs.ROOT / "configs" / "paper.py")
    paper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(paper)
    assert len(set(paper.NAMES)) == 2 * 3 * 4 * 5 + 5
    for name in paper.NAMES:
        validate(paper.get_config(name))


def test_names_choose_data_network_loss_and_budget():
    config = get_config("paper", "svhn-wrn_28_4-mart-99.9")
    assert (config.data.name, config.model, config.loss) == ("svhn_cropped", "wrn_28_4", "mart")
    assert (config.prune.target, config.prune.granularity) == (0.001, "weight")
    assert (config.prune.initial_rate, config.prune.gamma0) == (0.1, 0.01)
    config = get_config("paper", "cifar10-resnet18-trades-channels40")
    assert (config.prune.target, config.prune.granularity) == (0.6, "channel")
    assert config.prune.initial_rate == 1.0
    assert get_config("paper", "cifar10-vgg16_bn-pgd-50").prune.initial_rate == 0.5


def test_short_experiments_are_pgd_with_fewer_epochs_and_images():
    config = get_config("paper", "cifar10-vgg16_bn-short-99")
    epochs = [config[stage].epochs for stage in runs.STAGES]
    assert (config.loss, config.model, epochs) == ("pgd", "vgg16_bn", [30, 6, 30])
    assert (config.prune.target, config.data.test_examples) == (0.01, 1000)
    assert config.evaluate.run == ("pgd20", "autoattack")


def test_imagenet_has_the_authors_settings():
    config = get_config("paper", "imagenet-resnet50-free-90")
    assert (config.attack.epsilon, config.attack.step_size) == (0.0156, 0.00392)
    assert config.evaluate.attacks.pgd10.epsilon == 0.0156
    assert (config.batch_size, config.optimizer.weight_decay) == (256, 1e-4)
    assert [config[stage].epochs for stage in runs.STAGES] == [100, 5, 25]


@pytest.mark.parametrize(
    "name",
    ["cifar10-vgg16_bn-pgd", "cifar10-resnet50-pgd-99", "imagenet-resnet50-pgd-99", "mnist", ""],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="allowed are DATA-NETWORK-LOSS-BUDGET"):
        get_config("paper", name)


@pytest.mark.parametrize("budget", ["0", "100", "half", "channels", "channels100"])
def test_other_budgets_are_refused(budget):
    with pytest.raises(ValueError, match="allowed are percentages"):
        get_config("paper", f"cifar10-vgg16_bn-pgd-{budget}")
