"""Settings are checked in one place, described in one place, and are the arguments of the verbs."""

import inspect
from dataclasses import asdict, fields

import pytest

import exitlens as xl
from exitlens.types.settings import RECIPES, TrainingSettings


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("epochs", (0, 1.5, True)),
        ("batch_size", (0, 1.5)),
        ("accumulate", (0,)),
        ("patience", (0,)),
        ("seed", (-1, 2**40, "a")),
        ("learning_rate", (0.0, -1, "a", float("inf"))),
        ("head_learning_rate", (0.0, "a")),
        ("weight_decay", (-1,)),
        ("layer_decay", (0, 1.5)),
        ("warm_up", (-0.1, 1.0)),
        ("clip_norm", (0.0,)),
        ("ema", (1.0, "yes")),
        ("batch_norm", ("off",)),
        ("monitor", ("f1",)),
        ("keep", ("first",)),
    ],
)
def test_a_bad_value_is_refused_by_its_name(name, values):
    for value in values:
        with pytest.raises(xl.errors.InputError, match=f"{name}: expected .*, got {value!r}"):
            TrainingSettings(**{name: value})


def test_what_is_given_replaces_the_recipes_value():
    settings = TrainingSettings(recipe="pretrained", learning_rate=1e-5, warm_up=0.0)
    assert (settings.learning_rate, settings.warm_up) == (1e-5, 0.0)
    assert settings.head_learning_rate == RECIPES["pretrained"].head_learning_rate
    assert settings.rates.decay_vectors is False
    assert TrainingSettings(**asdict(settings)) == settings  # as recorded
    with pytest.raises(xl.errors.InputError, match=r"recipe: expected one of .*Did you mean 'pretrained'"):
        TrainingSettings(recipe="pretraind")


def test_the_best_epoch_is_kept_with_patience():
    assert TrainingSettings().kept_epoch == "last"
    assert TrainingSettings(patience=2).kept_epoch == "best"
    assert TrainingSettings(patience=2, keep="last").kept_epoch == "last"


def test_fit_has_the_settings_as_arguments_with_the_same_defaults():
    arguments = inspect.signature(xl.fit).parameters
    for field in fields(TrainingSettings):
        default = None if field.name == "augment" else field.default  # a function of the user's own, or a name
        assert arguments[field.name].default == default, field.name
