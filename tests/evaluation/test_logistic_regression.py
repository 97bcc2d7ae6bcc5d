import keras
import numpy as np
import pytest

from keras_igpt.evaluation import logistic_regression
from keras_igpt.evaluation.lbfgs import minimize
from keras_igpt.evaluation.logistic_regression import fit_logistic_regression


def correlated(count, width, num_classes, seed=0):
    """Features whose directions vary by three orders of magnitude, far from zero, and labels that depend on them."""
    mixing = np.random.default_rng(99).normal(size=(width, width)) * np.geomspace(1, 1e-3, width)[:, None]
    directions = np.random.default_rng(98).normal(size=(width, num_classes))
    random = np.random.default_rng(seed)
    causes = random.normal(size=(count, width))
    labels = np.argmax(causes @ directions + 2 * random.normal(size=(count, num_classes)), axis=1)
    return (causes @ mixing + 5).astype("float32"), labels


def standardized(fitted, features):
    return (features - fitted.mean(0, dtype="float64")) / fitted.std(0, dtype="float64")


def sklearn_fit(features, labels, strength, tolerance=1e-8):
    linear_model = pytest.importorskip("sklearn.linear_model")
    return linear_model.LogisticRegression(C=strength, tol=tolerance, max_iter=20_000).fit(features, labels)


def objective(coefficients, intercept, features, labels, strength):
    """What scikit-learn minimises, in float64: cross-entropy plus penalty, as a mean."""
    if len(coefficients) == 1:  # its two classes are one difference
        logits = np.concatenate([np.zeros((len(features), 1)), features @ coefficients.T + intercept], axis=1)
        penalty = np.square(coefficients).sum()
    else:
        logits = features @ coefficients.T + intercept
        penalty = np.square(coefficients).sum() * (2 if len(coefficients) == 2 else 1)
    top = logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0] - logits[np.arange(len(labels)), labels]
    return losses.mean() + penalty / (2 * strength * len(labels))


@pytest.mark.parametrize(("count", "width", "num_classes"), [(400, 12, 2), (400, 12, 5), (20, 30, 3)])
def test_each_fit_is_that_of_scikit_learn(count, width, num_classes):
    """Loss to 1e-4 and the same predictions, from fits that start from each other and one that starts from nothing."""
    features, labels = correlated(count, width, num_classes)
    others, other_labels = correlated(2000, width, num_classes, seed=1)
    inputs, other_inputs = standardized(features, features), standardized(features, others)
    strengths = (1e-3, 0.1, 100.0)
    references = [sklearn_fit(inputs, labels, strength) for strength in strengths]
    along = fit_logistic_regression((features, labels), (others, other_labels), strengths, refit=False)
    accuracies = [reference.score(other_inputs, other_labels) for reference in references]
    np.testing.assert_allclose(along.validation_accuracies, accuracies, atol=1.5e-3)
    for strength, reference in zip(strengths, references, strict=True):
        fit = fit_logistic_regression((features, labels), (others, other_labels), [strength], refit=False)
        assert fit.converged
        least = objective(reference.coef_, reference.intercept_, inputs, labels, strength)
        found = objective(fit.coefficients, fit.intercept, inputs, labels, strength)
        assert found == pytest.approx(least, rel=1e-4)
        assert (
            fit.predict(others) == reference.predict(other_inputs)
        ).mean() > 0.985  # at the borders, where the loss hardly tells


def test_a_fit_that_starts_from_another_gets_as_low(monkeypatch):
    """At the minimum of a small C the gradient of a large one's objective is small, and its minimum far."""
    features, labels = correlated(400, 12, 5)
    kept = []
    original = logistic_regression._fit
    monkeypatch.setattr(logistic_regression, "_fit", lambda *given: kept.append(original(*given)) or kept[-1])
    strengths = (1.0, 10.0, 100.0, 1000.0)
    fit_logistic_regression((features, labels), (features, labels), strengths, refit=False)
    inputs = standardized(features, features)
    for strength, (parameters, _, converged) in zip(strengths, kept, strict=True):
        assert converged
        reference = sklearn_fit(inputs, labels, strength)
        least = objective(reference.coef_, reference.intercept_, inputs, labels, strength)
        found = objective(parameters[:, :-1], parameters[:, -1], inputs, labels, strength)
        assert found == pytest.approx(least, rel=1e-4)


def test_chunks_and_blocks_of_columns_change_nothing(monkeypatch):
    features, labels = correlated(300, 12, 3)
    parts = (features[:200], labels[:200]), (features[200:], labels[200:])
    whole = fit_logistic_regression(*parts, [1.0])
    monkeypatch.setattr(logistic_regression, "_CHUNK_ROWS", 64)
    monkeypatch.setattr(logistic_regression, "_PRECONDITIONING_WIDTH", 5)
    monkeypatch.setattr(logistic_regression, "_PRECONDITIONING_ROWS", 50)
    cut = fit_logistic_regression(*parts, [1.0])
    assert cut.converged
    np.testing.assert_allclose(cut.mean, whole.mean, rtol=1e-6)
    np.testing.assert_allclose(cut.scale, whole.scale, rtol=1e-6)
    np.testing.assert_allclose(cut.coefficients, whole.coefficients, atol=0.03)
    assert cut.score(*parts[1]) == pytest.approx(whole.score(*parts[1]), abs=0.011)


def test_rows_go_to_the_device_in_chunks_of_one_size():
    features = np.arange(2 * 20_000, dtype="float32").reshape(20_000, 2)
    chunks = list(logistic_regression._chunks(features, np.zeros(2, "float32"), np.ones(2, "float32")))
    assert [count for _, count in chunks] == [8192, 8192, 3616]
    rows = [keras.ops.convert_to_numpy(chunk) for chunk, _ in chunks]
    assert {chunk.shape for chunk in rows} == {(8192, 3)}
    np.testing.assert_array_equal(np.concatenate(rows)[:20_000, :2], features)
    assert rows[2][:3616, 2].all()
    assert not rows[2][3616:].any()


def test_ill_conditioned_directions_cost_few_iterations():
    """The preconditioner's worth: the identity in its place takes many times as many, and so does scikit-learn."""
    features, labels = correlated(2000, 40, 5)
    fit = fit_logistic_regression((features, labels), (features, labels), [100.0], refit=False)
    assert fit.converged
    assert fit.iterations <= 40
    assert sklearn_fit(standardized(features, features), labels, 100.0, 1e-4).n_iter_[0] > 3 * fit.iterations


def test_lbfgs_finds_a_known_minimum():
    """Without help: a quadratic of condition 10,000 plus an even function of steep walls around the same point."""
    curvatures = np.geomspace(1, 1e4, 20).reshape(4, 5)
    target = np.linspace(-1, 1, 20).reshape(4, 5)
    evaluations = []

    def bowl(point):
        away = point - target
        evaluations.append(point)
        value = 1 + 0.5 * (curvatures * away**2).sum() + np.logaddexp(3 * away, -3 * away).sum()
        return value, curvatures * away + 3 * np.tanh(3 * away)

    found, iterations, converged = minimize(bowl, np.full((4, 5), 3.0), lambda gradient: gradient, 500)
    assert converged
    np.testing.assert_allclose(found, target, atol=1e-4)
    assert iterations < len(evaluations) < 2 * iterations + 10


def test_a_step_to_where_there_is_no_value_is_shortened():
    def barrier(point):
        with np.errstate(invalid="ignore"):
            return float(50 * point[0] - np.log(point[0])), 50 - 1 / point

    found, _, converged = minimize(barrier, np.array([3.0]), lambda gradient: gradient, 100)
    assert converged
    np.testing.assert_allclose(found, 1 / 50, rtol=1e-5)


def test_the_strength_is_chosen_on_validation_and_the_refit_sees_both():
    random = np.random.default_rng(0)
    train = (random.normal(size=(40, 30)).astype("float32"), random.integers(0, 2, 40))
    validation = (random.normal(size=(40, 30)).astype("float32"), random.integers(0, 2, 40))
    strengths = (1.0, 1e-4, 1e-2)
    fit = fit_logistic_regression(train, validation, strengths)
    references = [sklearn_fit(standardized(train[0], train[0]), train[1], strength) for strength in sorted(strengths)]
    scores = [reference.score(standardized(train[0], validation[0]), validation[1]) for reference in references]
    assert fit.strengths == tuple(sorted(strengths))
    assert fit.validation_accuracies == pytest.approx(scores)
    assert fit.validation_accuracy == max(scores)
    assert fit.regularization_strength == sorted(strengths)[int(np.argmax(scores))]
    both, labels = np.concatenate([train[0], validation[0]]), np.concatenate([train[1], validation[1]])
    refit = sklearn_fit(standardized(both, both), labels, fit.regularization_strength)
    np.testing.assert_allclose(fit.coefficients[1] - fit.coefficients[0], refit.coef_[0], atol=1e-2)
    assert fit.score(both, labels) == refit.score(standardized(both, both), labels)
    alone = fit_logistic_regression(train, validation, strengths, refit=False)
    kept = references[int(np.argmax(scores))]
    np.testing.assert_allclose(alone.coefficients[1] - alone.coefficients[0], kept.coef_[0], atol=1e-2)


def test_labels_may_be_names_and_features_constant():
    features = np.stack([np.repeat([-1.0, 1.0], 20), np.full(40, 7.1)], axis=1)
    labels = np.repeat(["cat", "ant"], 20)
    fit = fit_logistic_regression((features, labels), (features, labels))
    assert fit.score(features, labels) == 1
    assert fit.predict(features[[0, -1]]).tolist() == ["cat", "ant"]
    assert np.abs(fit.coefficients[:, 1]).max() < 1e-3


def test_an_unfinished_fit_says_so():
    features, labels = correlated(100, 12, 3)
    fit = fit_logistic_regression((features, labels), (features, labels), strengths=(100.0,), max_iterations=2)
    assert not fit.converged
    assert fit.iterations == 2


def test_the_precision_of_others_is_left_alone():
    features, labels = correlated(100, 4, 3)
    if keras.backend.backend() == "torch":
        import torch

        torch.set_float32_matmul_precision("high")
        try:
            fit_logistic_regression((features, labels), (features, labels), [1.0])
            assert torch.get_float32_matmul_precision() == "high"
        finally:
            torch.set_float32_matmul_precision("highest")
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        assert tf.config.experimental.tensor_float_32_execution_enabled()
        fit_logistic_regression((features, labels), (features, labels), [1.0])
        assert tf.config.experimental.tensor_float_32_execution_enabled()
    else:
        pytest.skip("JAX is told in a context of its own")


GOOD = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
BAD = {
    "features of no example": ("train", (np.empty((0, 4)), []), GOOD, {}),
    "one class": ("train", (GOOD[0], [1, 1, 1, 1]), GOOD, {}),
    "too few labels": ("validation", GOOD, (GOOD[0], [0, 1]), {}),
    "a class nobody taught": ("validation", GOOD, (GOOD[0], [0, 1, 2, 0]), {}),
    "other features": ("validation", GOOD, (np.eye(4, 3), GOOD[1]), {}),
    "a feature that is no number": ("train", (GOOD[0] * np.nan, GOOD[1]), GOOD, {}),
    "no strength": ("strengths", GOOD, GOOD, {"strengths": []}),
    "a strength of zero": ("strengths", GOOD, GOOD, {"strengths": [1.0, 0.0]}),
    "no iteration": ("max_iterations", GOOD, GOOD, {"max_iterations": 0}),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case):
    argument, train, validation, options = BAD[case]
    with pytest.raises(ValueError, match=f"^`{argument}` .*Received"):
        fit_logistic_regression(train, validation, **options)


def test_predicting_from_other_features_is_refused():
    fit = fit_logistic_regression(GOOD, GOOD, [1.0])
    with pytest.raises(ValueError, match=r"^`features` .*Received: shape \(2, 3\)"):
        fit.predict(np.zeros((2, 3)))
