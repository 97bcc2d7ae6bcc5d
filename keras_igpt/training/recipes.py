"""Recipes: what the paper trains with, as arguments of `compile`."""

from __future__ import annotations

from typing import Any

import keras

from keras_igpt.model.presets import Objective, get_preset
from keras_igpt.support.checks import check_choice, check_integer, check_number
from keras_igpt.training.accumulation import CosineDecayOverUpdates


def default_warmup(steps: int) -> int:
    """Returns the updates of the warm-up of a run of `steps` updates.

    One epoch of ImageNet is about 9,600 of the paper's million, 1%. That is too little for a short run, which the paper
    does not have: of 350 updates, 4 end at 3.339 nats and 35 at 3.290 (CIFAR-10 at 8×8 pixels, 8 layers of width 96).
    """
    return max(1, min(100, round(0.1 * steps)), round(0.01 * steps))


def pretraining_recipe(
    preset: str,
    objective: Objective,
    steps: int,
    steps_per_epoch: int | None = None,
    learning_rate: float | None = None,
    accumulation_steps: int = 1,
    clip_norm: float | None = None,
    ema_momentum: float | None = None,
) -> dict[str, Any]:
    """Makes the paper's pre-training set-up: Adam, linear warm-up over one epoch, cosine to zero.

    Adam has β1 = 0.9, β2 = 0.95 (0.999 gave loss spikes) and Keras' ε = 1e-7, which the paper does not give; there is
    no weight decay, no dropout and no clipping. The paper's batch size is 128 (64 for `igpt_extra_large`).

    Args:
        preset: str. A preset (`keras_igpt.get_preset`), for the peak learning rate.
        objective: `"ar"` or `"bert"`.
        steps: int. Optimizer updates in all; the rate is zero after them.
        steps_per_epoch: int. Length of the warm-up, in updates; by default 1% of `steps`, the share of one ImageNet
            epoch in the paper's million steps. Runs of fewer than 10,000 steps take 100, but at most a tenth: a
            departure from the paper, which has no run so short.
        learning_rate: float. Peak rate in place of the preset's.
        accumulation_steps: int. Batches of one update, which uses the mean of their gradients: 8 batches of 16 train as
            one of 128. All lengths here stay in updates. See `ApplyLeftoverGradients` for batches that are left over.
        clip_norm: float. Largest global norm of an update's gradient; a longer one is scaled down to it.
        ema_momentum: float in (0, 1). Momentum of a moving average of the weights, which the model has after each
            `fit`; `keras.callbacks.SwapEMAWeights()` validates with it. Not together with `accumulation_steps`.

    Returns:
        Arguments of `compile`: `{"optimizer": ...}`.

    Raises:
        ValueError: if an argument is out of its range, or the paper gives no rate for this preset and objective.

    Example:
    ```python
    lm.compile(**pretraining_recipe("igpt_small", objective="ar", steps=1_000_000, steps_per_epoch=9_609))
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.3 and
        table 5. The shape of the warm-up is not stated there; here it is linear and its first step is not zero.
    """
    rates = get_preset(preset).learning_rates
    check_choice("objective", objective, ("ar", "bert"))
    if learning_rate is None and objective not in rates:
        raise ValueError(
            f"`learning_rate` must be given: none is published for {preset!r} with {objective!r}. "
            "Received: learning_rate=None"
        )
    steps = check_integer("steps", steps)
    warmup = default_warmup(steps) if steps_per_epoch is None else check_integer("steps_per_epoch", steps_per_epoch)
    if warmup >= max(2, steps):
        raise ValueError(
            f"`steps_per_epoch` must be less than steps={steps}, for the warm-up takes one epoch. "
            f"Received: steps_per_epoch={steps_per_epoch}"
        )
    accumulation_steps = check_integer("accumulation_steps", accumulation_steps)
    peak = _check_rate(rates[objective] if learning_rate is None else learning_rate)
    schedule = CosineDecayOverUpdates(
        accumulation_steps,
        # The first update already counts: from one step's share, not from zero.
        initial_learning_rate=peak / warmup,
        warmup_target=peak,
        warmup_steps=warmup,
        decay_steps=max(1, steps - warmup),
    )
    return {"optimizer": _adam(schedule, accumulation_steps, clip_norm, ema_momentum)}


def finetuning_recipe(
    learning_rate: float, accumulation_steps: int = 1, clip_norm: float | None = None, ema_momentum: float | None = None
) -> dict[str, Any]:
    """Makes the paper's fine-tuning set-up: Adam as in pre-training, at a constant rate.

    The paper fine-tunes all weights and stops at the best validation accuracy
    (`keras.callbacks.EarlyStopping(monitor="val_accuracy", restore_best_weights=True)`). It searches the rates and does
    not print them; they were often ten times below those of pre-training.

    Args:
        learning_rate: float. Constant rate of Adam.
        accumulation_steps: int. As in `pretraining_recipe`.
        clip_norm: float. As in `pretraining_recipe`.
        ema_momentum: float. As in `pretraining_recipe`.

    Returns:
        Arguments of `compile`: optimizer, L_CLF and the accuracy.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
    ```python
    classifier.compile(**finetuning_recipe(learning_rate=0.0003))
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.4
    """
    return {
        "optimizer": _adam(_check_rate(learning_rate), accumulation_steps, clip_norm, ema_momentum),
        **_classification(),
    }


def probing_recipe(learning_rate: float, steps: int) -> dict[str, Any]:
    """Makes the paper's set-up for linear probes on ImageNet: SGD with momentum 0.9, cosine to zero, no warm-up.

    For a classifier with `frozen=True`. The paper takes a million steps and tries the rates 30, 10, 3, … from large to
    small; it gives neither batch size nor weight decay (none here) nor augmentation.

    Args:
        learning_rate: float. Rate of the first step.
        steps: int. Steps in all; the rate is zero after them.

    Returns:
        Arguments of `compile`: optimizer, L_CLF and the accuracy.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
    ```python
    probe = ImageGPTImageClassifier(lm, num_classes=1000, generative_weight=0.0, layer=24, frozen=True)
    probe.compile(**probing_recipe(learning_rate=10.0, steps=1_000_000))
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.4
    """
    schedule = keras.optimizers.schedules.CosineDecay(_check_rate(learning_rate), check_integer("steps", steps))
    return {"optimizer": keras.optimizers.SGD(schedule, momentum=0.9), **_classification()}


def _check_rate(learning_rate: Any) -> float:
    return float(check_number("learning_rate", learning_rate, 0, above=True))


def _classification() -> dict[str, Any]:
    return {
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # Weighted, so that rows that only fill up the last batch do not count.
        "weighted_metrics": ["accuracy"],
    }


def _adam(
    learning_rate: Any, accumulation_steps: int, clip_norm: float | None, ema_momentum: float | None
) -> keras.optimizers.Adam:
    accumulation_steps = check_integer("accumulation_steps", accumulation_steps)
    if clip_norm is not None:
        clip_norm = check_number("clip_norm", clip_norm, 0, above=True)
    if ema_momentum is not None:
        ema_momentum = check_number("ema_momentum", ema_momentum, 0, 1, above=True, below=True)
        if accumulation_steps > 1:
            raise ValueError(
                "`ema_momentum` must be None with `accumulation_steps`: Keras averages after each batch, not after "
                "each update. Leave one of the two out. "
                f"Received: ema_momentum={ema_momentum}, accumulation_steps={accumulation_steps}"
            )
    return keras.optimizers.Adam(
        learning_rate,
        beta_1=0.9,
        beta_2=0.95,
        global_clipnorm=clip_norm,
        gradient_accumulation_steps=accumulation_steps if accumulation_steps > 1 else None,
        use_ema=ema_momentum is not None,
        ema_momentum=0.99 if ema_momentum is None else ema_momentum,
    )
