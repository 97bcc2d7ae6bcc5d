"""Recipes: what the paper trains with, as arguments of `compile`."""

from __future__ import annotations

from typing import Any

import keras

from keras_igpt.presets import Objective, get_preset

# One epoch of ImageNet is about 9,600 of the paper's million steps.
_WARMUP_SHARE = 0.01


def pretraining_recipe(
    preset: str,
    objective: Objective,
    steps: int,
    steps_per_epoch: int | None = None,
    learning_rate: float | None = None,
) -> dict[str, Any]:
    """Makes the paper's pre-training set-up: Adam, linear warm-up over one epoch, cosine to zero.

    Adam has β1 = 0.9, β2 = 0.95 (0.999 gave loss spikes) and Keras' ε = 1e-7, which the paper does not give; there is
    no weight decay, no dropout and no clipping. The paper's batch size is 128 (64 for `igpt_extra_large`).

    Args:
        preset: str. A key of `keras_igpt.presets.PRESETS`, for the peak learning rate.
        objective: `"ar"` or `"bert"`.
        steps: int. Optimizer updates in all; the rate is zero after them.
        steps_per_epoch: int. Length of the warm-up. By default 1% of `steps`, the share of one ImageNet epoch in the
            paper's million steps.
        learning_rate: float. Peak rate in place of the preset's.

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
    if objective not in ("ar", "bert"):
        raise ValueError(f"`objective` must be 'ar' or 'bert'. Received: objective={objective!r}")
    if learning_rate is None and objective not in rates:
        raise ValueError(
            f"`learning_rate` must be given: none is published for {preset!r} with {objective!r}. "
            "Received: learning_rate=None"
        )
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` must be a positive integer. Received: steps={steps!r}")
    warmup = max(1, round(_WARMUP_SHARE * steps)) if steps_per_epoch is None else steps_per_epoch
    if not 1 <= warmup < max(2, steps):
        raise ValueError(
            f"`steps_per_epoch` must be at least 1 and less than steps={steps}, for the warm-up takes one epoch. "
            f"Received: steps_per_epoch={steps_per_epoch}"
        )
    peak = float(rates[objective] if learning_rate is None else learning_rate)
    if not peak > 0:
        raise ValueError(f"`learning_rate` must be positive. Received: learning_rate={learning_rate}")
    schedule = keras.optimizers.schedules.CosineDecay(
        # The first update already counts: from one step's share, not from zero.
        initial_learning_rate=peak / warmup,
        warmup_target=peak,
        warmup_steps=warmup,
        decay_steps=max(1, steps - warmup),
    )
    return {"optimizer": keras.optimizers.Adam(schedule, beta_1=0.9, beta_2=0.95)}


def finetuning_recipe(learning_rate: float) -> dict[str, Any]:
    """Makes the paper's fine-tuning set-up: Adam as in pre-training, at a constant rate.

    The paper fine-tunes all weights without schedule and stops at the best validation accuracy
    (`keras.callbacks.EarlyStopping(monitor="val_accuracy", restore_best_weights=True)`). It does not print its rates;
    it searches them, and found them often ten times below those of pre-training.

    Args:
        learning_rate: float. Rate of Adam, constant.

    Returns:
        Arguments of `compile`: optimizer, L_CLF and the accuracy.

    Raises:
        ValueError: if the rate is not positive.

    Example:
    ```python
    classifier.compile(**finetuning_recipe(learning_rate=0.0003))
    ```

    Reference:
        [Chen et al., 2020](https://cdn.openai.com/papers/Generative_Pretraining_from_Pixels_V2.pdf), section 3.4
    """
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be positive. Received: learning_rate={learning_rate}")
    return {
        "optimizer": keras.optimizers.Adam(float(learning_rate), beta_1=0.9, beta_2=0.95),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # Weighted, so that rows that only fill up the last batch do not count.
        "weighted_metrics": ["accuracy"],
    }
