import gc
import signal
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from conftest import make_causal_lm, random_tokens, randomize, to_numpy
from PIL import Image

import keras_igpt as igpt

TOKENS, LABELS = random_tokens(8), np.arange(8) % 3
KNOWN = np.arange(16) < 8
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Batches(keras.utils.PyDataset):
    """Four batches of two; something happens as one of them is read."""

    def __init__(self, at=None, happens=None):
        super().__init__()
        self.at, self.happens = at, happens

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == self.at:
            self.happens()
        rows = slice(2 * index, 2 * index + 2)
        return TOKENS[rows], LABELS[rows]


def make_classifier():
    lm = randomize(make_causal_lm(num_layers=1))
    classifier = randomize(igpt.ImageGPTImageClassifier(lm, num_classes=3, generative_weight=0.0), seed=1)
    classifier.compile(optimizer=keras.optimizers.SGD(0.1), loss=LOSS, weighted_metrics=["accuracy"])
    return classifier


def weights_of(model):
    return [to_numpy(weight).copy() for weight in model.weights]


def assert_same(model, expected):
    for weight, array in zip(model.weights, expected, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), array)


def assert_works(model, expected):
    assert_same(model, expected)
    model.evaluate(TOKENS, LABELS, batch_size=2, verbose=0)
    model.fit(TOKENS, LABELS, batch_size=2, verbose=0)
    assert np.isfinite(model.predict(TOKENS, batch_size=2, verbose=0)).all()


def interrupt():
    signal.raise_signal(signal.SIGINT)


def fail():
    raise OSError("the disk is gone")


@pytest.mark.parametrize("happens", [interrupt, fail])
def test_data_that_fail_leave_the_weights_of_the_last_step(happens):
    classifier = make_classifier()
    start = weights_of(classifier)
    # TensorFlow reads data in a thread of its own and passes an error of its own on.
    errors = (KeyboardInterrupt, OSError, Exception)
    for method in (classifier.predict, classifier.evaluate):
        for at in (2, 3):
            with pytest.raises(errors):
                method(Batches(at, happens), verbose=0)
            assert_same(classifier, start)
    for batch in range(3):
        classifier.train_on_batch(*Batches()[batch])
    after_three = weights_of(classifier)
    for weight, array in zip(classifier.weights, start, strict=True):
        weight.assign(array)
    if keras.backend.backend() == "tensorflow":
        # It reads ahead, so that any number of steps may have been made.
        after_three = None
    with pytest.raises(errors):
        classifier.fit(Batches(3, happens), verbose=0)
    assert_works(classifier, weights_of(classifier) if after_three is None else after_three)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_an_interrupt_waits_for_the_step_that_is_under_way(method, monkeypatch):
    classifier = make_classifier()
    # Keras looks at the shapes first, which is no step.
    classifier.test_on_batch(TOKENS[:2], LABELS[:2])
    start = weights_of(classifier)
    if method == "fit":
        classifier.train_on_batch(TOKENS[:2], LABELS[:2])
    expected = weights_of(classifier)
    for weight, array in zip(classifier.weights, start, strict=True):
        weight.assign(array)
    classifier.train_function = classifier.test_function = None
    calls = []
    call = classifier.call

    def interrupted(*args, **kwargs):
        # In the first step on PyTorch, while it is compiled elsewhere.
        calls.append(args)
        outputs = call(*args, **kwargs)
        if len(calls) == 1:
            interrupt()
        return outputs

    monkeypatch.setattr(classifier, "call", interrupted)
    labels = {} if method == "predict" else {"y": LABELS}
    order = {"shuffle": False} if method == "fit" else {}
    with pytest.raises(KeyboardInterrupt):
        getattr(classifier, method)(x=TOKENS, **labels, **order, batch_size=2, verbose=0)
    monkeypatch.undo()
    assert_works(classifier, expected)


def test_nothing_else_handles_interrupts_afterwards():
    before = signal.getsignal(signal.SIGINT)
    classifier = make_classifier()
    classifier.predict(TOKENS, batch_size=2, verbose=0)
    with pytest.raises(ValueError, match="class labels"):
        classifier.evaluate(TOKENS, batch_size=2, verbose=0)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only Keras on JAX gives the weights' memory away")
def test_a_step_that_fails_on_the_device_leaves_the_weights(monkeypatch):
    import jax

    classifier = make_classifier()
    start = weights_of(classifier)
    compute_loss, call = classifier.compute_loss, classifier.call

    def out_of_memory(_):
        raise MemoryError("no memory is left")

    def failing(value):
        return value + jax.pure_callback(out_of_memory, jax.ShapeDtypeStruct((), "float32"), 0.0)

    monkeypatch.setattr(classifier, "compute_loss", lambda *args, **kwargs: failing(compute_loss(*args, **kwargs)))
    monkeypatch.setattr(
        classifier, "call", lambda *args, **kwargs: {"class_logits": failing(call(*args, **kwargs)["class_logits"])}
    )
    for method, labels in (("fit", {"y": LABELS}), ("evaluate", {"y": LABELS}), ("predict", {})):
        with pytest.raises(Exception, match="no memory is left"):
            getattr(classifier, method)(x=TOKENS, **labels, batch_size=2, verbose=0)
        assert_same(classifier, start)
    monkeypatch.undo()
    # JAX knows the model's step by its name and owner, and would take the failing one again.
    jax.clear_caches()
    classifier.train_function = classifier.test_function = classifier.predict_function = None
    assert_works(classifier, start)


def results_of(lm):
    """What programs that are compiled once per model compute."""
    return (
        lm.score(TOKENS).nats_per_token,
        lm.predict(TOKENS, verbose=0),
        lm.continue_tokens(TOKENS, KNOWN, lookahead=2),
    )


def change_what_is_trainable(lm):
    first, second = lm.backbone.blocks
    first.trainable, second.trainable = True, False


def add_adapters(lm):
    dense = lm.backbone.blocks[0].feed_forward.expansion
    dense.enable_lora(2)
    for weight in (dense.lora_kernel_a, dense.lora_kernel_b):
        weight.assign(np.full(weight.shape, 0.1))


def test_replaced_weights_are_freed():
    classifier = make_classifier()
    # `evaluate` would build the optimizer, which keeps the weights.
    classifier.predict(TOKENS, batch_size=2, verbose=0)
    block = classifier.language_model.backbone.blocks[0]
    replaced = weakref.ref(block.feed_forward.expansion.kernel)
    classifier.language_model.backbone.quantize("int8")
    gc.collect()
    assert replaced() is None


@pytest.mark.parametrize("change", [change_what_is_trainable, add_adapters, lambda lm: lm.backbone.quantize("int8")])
def test_what_was_compiled_does_not_outlive_its_weights(change):
    """Of a model that has computed before, and of one that has not."""
    used, fresh = (randomize(make_causal_lm()) for _ in range(2))
    extractors = [igpt.FeatureExtractor(lm) for lm in (used, fresh)]
    used.backbone.blocks[0].trainable = fresh.backbone.blocks[0].trainable = False
    before = [*results_of(used), extractors[0].extract(TOKENS)]
    change(used)
    change(fresh)
    pairs = zip((used, fresh), extractors, strict=True)
    after, expected = ([*results_of(lm), extractor.extract(TOKENS)] for lm, extractor in pairs)
    for computed, right in zip(after, expected, strict=True):
        np.testing.assert_allclose(computed, right, atol=1e-5)
    assert (change is change_what_is_trainable) == np.allclose(before[0], after[0], atol=1e-6)


@pytest.fixture
def frequent_switches():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def test_several_threads_may_compute_with_one_model(tmp_path, palette, frequent_switches):
    """Also where they wait for files in between."""
    lm = randomize(make_causal_lm(palette))
    for number, picture in enumerate(palette.decode(TOKENS)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    pictures = igpt.load_unlabeled_folder(tmp_path, image_size=4)
    extractor = igpt.FeatureExtractor(lm)
    expected = [lm.score(pictures, batch_size=2).nats_per_token, extractor.extract(TOKENS)]
    weights = weights_of(lm)
    with ThreadPoolExecutor(3) as pool:
        scored = [pool.submit(lambda: lm.score(pictures, batch_size=2).nats_per_token) for _ in range(30)]
        extracted = [pool.submit(extractor.extract, TOKENS, 2) for _ in range(30)]
    for computed in scored:
        np.testing.assert_allclose(computed.result(), expected[0], atol=1e-6)
    for computed in extracted:
        np.testing.assert_allclose(computed.result(), expected[1], atol=1e-5)
    assert_same(lm, weights)
