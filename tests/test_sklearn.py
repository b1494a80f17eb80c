"""ExitClassifier and ExitRegressor: scikit-learn's own checks, adaptive answers, and what is saved comes back bit for bit."""

import copy
import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import estimator_checks_generator

import exitlens as xl
from exitlens.sklearn import ExitClassifier, ExitRegressor
from tests.kinds import Perceptron

Quick = partial(ExitClassifier, exits=1, epochs=2, random_state=0)
QuickRegressor = partial(ExitRegressor, exits=1, epochs=2, random_state=0)
CHECKS = (  # the cheap ones; tests/ecosystem has all
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_n_features_in_after_fitting",
    "check_no_attributes_set_in_init",
    "check_classifiers_one_label",
    "check_dict_unchanged",
    "check_fit1d",
    "check_fit2d_1sample",
    "check_fit2d_1feature",
    "check_methods_subset_invariance",
    "check_parameters_default_constructible",
    "check_requires_y_none",
    "check_complex_data",
    "check_supervised_y_2d",
)


def name_check(check) -> str:
    return getattr(check, "func", check).__name__


ASKED = (pair for model in (Quick(), QuickRegressor()) for pair in estimator_checks_generator(model))
PAIRS = [pair for pair in ASKED if name_check(pair[1]) in CHECKS]


@pytest.fixture(scope="module")
def iris() -> tuple[pd.DataFrame, np.ndarray]:
    data = load_iris(as_frame=True)
    return data.data, data.target_names[data.target]


@pytest.fixture(scope="module")
def model(iris) -> ExitClassifier:
    return ExitClassifier(exits=2, epochs=4, random_state=0).fit(*iris)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "check"), PAIRS, ids=[f"{type(model).__name__}-{name_check(check)}" for model, check in PAIRS]
)
def test_it_is_what_scikit_learn_expects(estimator, check):
    check(estimator)


def test_answers_are_those_of_the_policy(iris, model):
    X, scaling = iris[0], model.net_.info.preprocess
    inputs, model = scaling.normalise(torch.tensor(X.to_numpy())), copy.copy(model)
    middle = xl.predict(model.net_, inputs, xl.Policy((0.0, 0.0))).confidence.median().item()
    model.policy_ = xl.Policy((middle, middle))
    pred = xl.predict(model.net_, inputs, model.policy_)
    assert model.predict(X).tolist() == [model.classes_[i] for i in pred.labels]
    assert np.array_equal(model.predict_exits(X), pred.exits.numpy())
    assert np.allclose(model.predict_proba(X), pred.probabilities.numpy(), atol=1e-6)
    assert len(set(pred.exits.tolist())) > 1  # else this would say nothing of exits
    assert model.cost_.shape == (3,)
    assert model.net_.info.classes == tuple(model.classes_) == ("setosa", "versicolor", "virginica")
    assert scaling.names == tuple(model.feature_names_in_) == tuple(X.columns)
    why = model.explain(X[:3])
    assert [item.answered for item in why] == pred.exits[:3].tolist()


def test_the_policy_is_chosen_on_samples_that_were_not_trained_on(iris, monkeypatch):
    seen = {}
    monkeypatch.setattr("exitlens.sklearn.training.fit", lambda net, train, val, **_: seen.update(train=train, val=val))
    model = Quick(held_out=0.2).fit(*iris)
    assert (len(seen["train"]), len(seen["val"])) == (120, 30)
    assert not {*seen["train"].indices} & {*seen["val"].indices}
    assert model.policy_.calibration.samples == 30
    assert seen["train"].dataset[0][0].shape == (4,)


@pytest.mark.slow
def test_a_fit_is_repeatable_and_leaves_the_global_generator_alone(iris, model):
    before = torch.random.get_rng_state()
    again = ExitClassifier(exits=2, epochs=4, random_state=0).fit(*iris)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(again.predict_proba(iris[0]), model.predict_proba(iris[0]))


@pytest.mark.slow
def test_what_is_saved_comes_back(iris, model, tmp_path):
    X, _ = iris
    path = model.save(tmp_path / "bundle")
    for same in (ExitClassifier.load(path), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(same.predict_proba(X), model.predict_proba(X))
        assert np.array_equal(same.predict(X), model.predict(X))
        assert same.get_params() == model.get_params()
        assert (same.n_features_in_, same.classes_.dtype) == (4, model.classes_.dtype)
        with pytest.raises(ValueError, match="feature names"):
            same.predict(X.rename(columns=str.upper))
    net, policy = xl.load(path)
    assert (net.fingerprint(), policy) == (model.net_.fingerprint(), model.policy_)
    with pytest.raises(xl.errors.OutputExistsError):
        model.save(path)
    (path / "sklearn.json").write_text('{"parameters": {"colour": 1}}')
    with pytest.raises(xl.errors.BundleError, match=r"colour.*Fix"):
        ExitClassifier.load(path)
    (path / "sklearn.json").unlink()
    with pytest.raises(xl.errors.BundleError, match=r"not written by.*exitlens.load"):
        ExitClassifier.load(path)


def test_a_module_of_ones_own_is_copied_and_passed_again(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 8)), rng.integers(0, 2, 40)
    backbone = Perceptron()
    before = copy.deepcopy(backbone.state_dict())
    model = Quick(backbone, exits=["first"]).fit(X, y)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert model.net_.info.at == ("first",)
    path = model.save(tmp_path / "bundle")
    same = ExitClassifier.load(path, backbone=backbone)
    assert same.backbone is backbone
    assert same.predict(X).dtype == y.dtype
    assert np.array_equal(same.predict_proba(X), model.predict_proba(X))


def test_groups_give_maps(iris):
    model = Quick(groups={"sepal": [0, 1], "petal": [2, 3]}, loss_weight=0.5).fit(*iris)
    assert [view.attention.shape for view in model.explain(iris[0][:1])[0].exits] == [(2,), (2,)]


def test_a_certificate_that_too_few_samples_refuse_is_a_warning(iris):
    with pytest.warns(xl.errors.DataWarning, match="samples would be needed"):
        model = Quick(delta=0.1).fit(*iris)
    assert model.predict_exits(iris[0]).tolist() == [1] * 150


def test_what_cannot_be_learnt_is_refused(iris):
    with pytest.raises(xl.errors.InputError, match=r"of two classes or more, got 150 samples of the class\(es\) \['x'\]"):
        Quick().fit(iris[0], ["x"] * 150)
    with pytest.raises(xl.errors.InputError, match=r"y: expected 4 samples or more, .*got 2"):
        Quick().fit(["a good lamp", "a bad lamp"], [0, 1])
    with pytest.raises(xl.errors.InputError, match="held_out: expected a share"):
        Quick(held_out=1.0).fit(*iris)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        Quick().fit(["a", "b", "c"], [0, 1])
    for ask in ("predict", "predict_proba", "predict_exits", "explain"):
        with pytest.raises(NotFittedError):
            getattr(Quick(), ask)(iris[0])
    with pytest.raises(NotFittedError):
        Quick().save("nowhere")


@pytest.fixture(scope="module")
def lengths(iris) -> tuple[np.ndarray, np.ndarray]:
    X = iris[0].to_numpy()
    return X[:, :2], 100 + 10 * X[:, 2]  # a petal's length, from the sepal


@pytest.fixture(scope="module")
def regressor(lengths) -> ExitRegressor:
    return ExitRegressor(exits=2, epochs=12, max_error_increase=0.1, random_state=0).fit(*lengths)


def test_numbers_are_those_of_the_policy(lengths, regressor):
    X, y = lengths
    inputs, model = regressor.net_.info.preprocess.normalise(torch.tensor(X)), copy.copy(regressor)
    middle = xl.predict(model.net_, inputs, xl.Policy((0.0, 0.0), score="closeness")).confidence.median().item()
    model.policy_ = xl.Policy((middle, middle), score="closeness")
    pred = xl.predict(model.net_, inputs, model.policy_)
    assert np.allclose(model.predict(X), pred.labels.numpy(), rtol=1e-5)
    assert np.array_equal(model.predict_exits(X), pred.exits.numpy())
    assert len(set(pred.exits.tolist())) > 1  # else this would say nothing of exits
    assert regressor.score(X, y) > 0.5  # so they are in the units of y
    assert model.explain(X[:1])[0].exits[0].numbers[0].number == pytest.approx(pred.labels[0].item(), rel=0.2)


def test_numbers_far_from_zero_keep_their_differences(lengths, regressor):
    X, y = lengths
    far = copy.copy(regressor).fit(X, y + 1.7e9)
    assert far.score(X, y + 1.7e9) == pytest.approx(regressor.score(X, y), abs=0.01)


def test_limits_of_a_regressor_are_those_of_its_policy(lengths, regressor):
    request = regressor.policy_.calibration.request
    assert (request.max_error_increase, request.max_deviation, request.folds) == (0.1, None, 5)
    never = QuickRegressor(max_error_increase=None, max_deviation=0.01, delta=0.1)
    with pytest.warns(xl.errors.DataWarning, match="max_deviation could not be shown"):
        never.fit(*lengths)
    assert never.policy_.calibration.request.max_deviation == 0.01
    assert never.predict_exits(lengths[0]).tolist() == [1] * 150


@pytest.mark.slow
def test_several_numbers_come_back_from_a_bundle(lengths, model, tmp_path):
    X, y = lengths
    several = QuickRegressor().fit(X, np.stack([y, -y], 1))
    path = several.save(tmp_path / "bundle")
    for same in (ExitRegressor.load(path), pickle.loads(pickle.dumps(several))):
        assert same.predict(X).shape == (150, 2)
        assert np.array_equal(same.predict(X), several.predict(X))
        assert same.get_params() == several.get_params()
    for other, written in ((ExitClassifier, path), (ExitRegressor, model.save(tmp_path / "classifier"))):
        with pytest.raises(xl.errors.BundleError, match=rf"not written by {other.__name__}\.save"):
            other.load(written)


def test_numbers_that_cannot_be_learnt_are_refused(lengths):
    X, _ = lengths
    with pytest.raises(ValueError, match="could not convert string to float"):
        QuickRegressor().fit(X, ["x"] * 150)
    with pytest.raises(xl.errors.InputError, match=r"y: expected 4 samples or more, got 2"):
        QuickRegressor().fit(["a good lamp", "a bad lamp"], [0.0, 1.0])
    with pytest.raises(NotFittedError):
        QuickRegressor().predict(X)
