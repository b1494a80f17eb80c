"""Settings are checked in one place, described in one place, and are the arguments of the verbs."""

import inspect
import json
import re
from dataclasses import asdict, fields

import pytest

import exitlens as xl
from exitlens.functional.calibration import run_calibration
from exitlens.types.settings import RECIPES, SampleSketch, Temperatures, TrainingSettings
from tests.conftest import random_trace, timed_trace


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
        default = (
            None if field.name in ("augment", "ignore", "teacher") else field.default
        )  # they take what settings cannot hold
        assert arguments[field.name].default == default, field.name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "limits: expected at least one of max_accuracy_drop"),
        *(({"max_disagreement": value}, "max_disagreement: expected a number") for value in (True, float("nan"))),
        ({"max_cost": -1}, "max_cost: expected a number"),
        ({"max_ms": 0}, "max_ms: expected milliseconds above 0"),
        ({"max_cost": 0.5, "percentile": 95}, "pass max_ms, too"),
        ({"max_ms": 5, "percentile": 0}, "percentile: expected a number in"),
        ({"max_ms": 5, "percentile": 100, "delta": 0.1}, "percentile: samples never show"),
        ({"max_disagreement": 0.1, "score": "sure"}, "score: expected one of"),
        *(({"max_disagreement": 0.1, "delta": value}, "delta: expected a number in") for value in (0, True)),
        ({"max_cost": 0.5, "delta": 0.1}, "delta: it certifies limits on risks"),
        ({"max_divergence": 0.1, "gate": 1}, "gate: expected bool"),
        ({"max_disagreement": 0.1, "temperature_scaling": 1}, "temperature_scaling: expected bool"),
        ({"max_disagreement": 0.1, "temperatures": (1.0,)}, "temperatures: expected Temperatures"),
        ({"max_disagreement": 0.1, "equal_groups": True}, "equal_groups: it is about a certificate"),
        ({"max_cost": 0.5, "folds": 5}, "folds: they are about limits on risks"),
        ({"max_disagreement": 0.1, "folds": 5, "delta": 0.1}, "folds: delta promises more"),
        *(({"max_disagreement": 0.1, "folds": n}, f"folds: expected an integer .*, got {n}") for n in (1, True, 2.0)),
        ({"max_disagreement": 0.1, "seed": -1}, "seed: expected an integer"),
    ],
)
def test_requests_that_make_no_sense(given, message):
    with pytest.raises(xl.errors.InputError, match=message):
        xl.CalibrationRequest(**given)


def test_limits_by_name():
    request = xl.CalibrationRequest(max_divergence=0.2, max_cost=0.5, delta=0.1, score="margin", gate=True)
    assert request.risk_limits == {"max_divergence": 0.2}
    assert request.limits == {"max_divergence": 0.2, "max_cost": 0.5}


def test_every_field_is_documented_by_one_entry():
    section = xl.CalibrationRequest.__doc__.split("Attributes:\n")[1].split("\n\n")[0]
    assert re.findall(r"^        (\w+): [A-Z]", section, re.M) == [field.name for field in fields(xl.CalibrationRequest)]


@pytest.mark.parametrize(
    "given",
    [
        {"max_disagreement": 0.1, "temperature_scaling": False},
        {"max_accuracy_drop": 0.05, "max_class_accuracy_drop": 0.2, "max_cost": 0.9, "delta": 0.1, "seed": 7},
        {"max_class_accuracy_drop": 0.2, "max_disagreement": 0.3, "max_cost": 0.9},
        {"max_ms": 5, "percentile": 95},
        {"max_disagreement": 0.1, "folds": 3, "score": "entropy"},
        {"max_disagreement": 0.2, "temperatures": Temperatures((1.5, 0.7, 1.1), (SampleSketch("ab", ("00", "11")),))},
    ],
)
@pytest.mark.slow
def test_a_request_is_recorded_verbatim_and_repeated(given):
    trace, request = timed_trace(300), xl.CalibrationRequest(**given)
    policy = xl.calibrate(trace, **given)
    assert policy.calibration.request == request
    assert policy.calibration.limits == request.limits
    stored = xl.Policy.from_dict(json.loads(json.dumps(policy.to_dict(), allow_nan=False)))
    assert stored == policy
    assert run_calibration(trace, stored.calibration.request) == policy


def test_temperatures_of_a_policy_are_recorded_with_what_they_were_fitted_on():
    fitted = xl.calibrate(random_trace(300, seed=1), max_cost=1.0)
    policy = xl.calibrate(random_trace(300, seed=2), max_disagreement=0.3, temperatures=fitted)
    given = policy.calibration.request.temperatures
    assert given == Temperatures(fitted.temperatures, fitted.calibration.fitted_on, fitted.network)
    assert policy.temperatures == fitted.temperatures
    assert policy.calibration.request.for_any_network().temperatures.network == ""
