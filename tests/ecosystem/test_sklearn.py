"""ExitClassifier and ExitRegressor as people use them: all of scikit-learn's checks, searches, texts and series, Optuna and MAPIE."""

import numpy as np
import pytest

mapie = pytest.importorskip("mapie.classification")
optuna = pytest.importorskip("optuna")

from sklearn.datasets import load_digits, load_wine  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

import exitlens as xl  # noqa: E402
from exitlens.sklearn import ExitClassifier, ExitRegressor  # noqa: E402


@pytest.fixture(scope="module")
def wine():
    data = load_wine(as_frame=True)
    return data.data, data.target_names[data.target]


def expect_failures(model):
    wide = "numbers are float32, because float64 would promise digits that differ with the batch"
    return {"check_regressor_multioutput": wide} if isinstance(model, ExitRegressor) else {}


@parametrize_with_checks([ExitClassifier(), ExitRegressor()], expected_failed_checks=expect_failures)
def test_every_check_of_scikit_learn(estimator, check):
    check(estimator)


def test_a_search_in_processes_over_a_pipeline_with_names_as_labels(wine):
    pipeline = make_pipeline(StandardScaler(), ExitClassifier(epochs=6, groups={"a": [0, 1], "b": [2, 3]}, random_state=0))
    settings = {"exitclassifier__exits": [1, 3], "exitclassifier__loss_weight": [0.0, 1.0]}
    search = GridSearchCV(pipeline, settings, cv=2, n_jobs=2).fit(*wine)
    assert search.best_score_ > 0.85
    assert search.best_estimator_[-1].get_params()["exits"] == search.best_params_["exitclassifier__exits"]


def test_cross_validation(wine):
    assert cross_val_score(ExitClassifier(epochs=10, random_state=0), *wine, cv=3).mean() > 0.9


def test_texts(tmp_path):
    train, test = (xl.demo.load_reviews(split, limit=limit) for split, limit in (("train", 600), ("test", 200)))
    y, truth = (np.array(part.classes)[part.labels.numpy()] for part in (train, test))
    model = ExitClassifier(epochs=10, random_state=0).fit(list(train.texts), y)
    assert model.score(list(test.texts), truth) > 0.7
    assert model.explain(test.texts[:1])[0].tokens[0] == "[CLS]"
    same = ExitClassifier.load(model.save(tmp_path / "bundle"))
    assert np.array_equal(same.predict_proba(list(test.texts)), model.predict_proba(list(test.texts)))


def test_series(tmp_path):
    data = xl.demo.load_motifs("train", limit=200)
    X, y = data.values.numpy(), data.labels.numpy()
    model = ExitClassifier(epochs=4, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.7
    same = ExitClassifier.load(model.save(tmp_path / "bundle"))
    assert np.array_equal(same.predict_proba(X), model.predict_proba(X))


@pytest.fixture(scope="module")
def digits():
    X, X_test, y, y_test = train_test_split(*load_digits(return_X_y=True), random_state=0)
    return *train_test_split(X, y, random_state=0), X_test, y_test


def test_conformal_sets_by_mapie_cover(digits):
    X, X_cal, y, y_cal, X_test, y_test = digits
    model = ExitClassifier(epochs=5, random_state=0).fit(X, y)
    conformal = mapie.SplitConformalClassifier(model, confidence_level=0.9, prefit=True).conformalize(X_cal, y_cal)
    labels, sets = conformal.predict_set(X_test)
    assert np.array_equal(labels, model.predict(X_test))
    assert sets[np.arange(len(y_test)), y_test, 0].mean() > 0.85


def test_optuna_chooses_exits_and_rates(digits):
    X, X_val, y, y_val, *_ = digits

    def score(trial):
        exits, rate = trial.suggest_int("exits", 1, 3), trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        model = ExitClassifier(epochs=2, exits=exits, learning_rate=rate, random_state=0).fit(X, y)
        return model.score(X_val, y_val) - 0.1 * model.cost_[model.predict_exits(X_val)].mean()

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(score, n_trials=3)
    assert study.best_value > 0.7
