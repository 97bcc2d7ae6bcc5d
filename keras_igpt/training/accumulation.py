"""Gradient accumulation: schedules that count updates, and the gradients left over at the end."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_igpt.backend.optimizers import apply_waiting_gradients, innermost
from keras_igpt.support.checks import check_integer


@keras.saving.register_keras_serializable(package="keras_igpt")
class CosineDecayOverUpdates(keras.optimizers.schedules.CosineDecay):
    """Linear warm-up and cosine decay whose steps are optimizer updates, also where several batches make one.

    Keras gives a schedule the number of batches, not of updates.

    Args:
        accumulation_steps: int. Batches of one update.
        **kwargs: of `keras.optimizers.schedules.CosineDecay`, with all steps in updates.
    """

    def __init__(self, accumulation_steps: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.accumulation_steps = check_integer("accumulation_steps", accumulation_steps)

    def __call__(self, step: Any) -> Any:
        return super().__call__(ops.floor_divide(step, self.accumulation_steps))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "accumulation_steps": self.accumulation_steps}


def apply_leftover_gradients(model: keras.Model) -> int:
    """Makes one update with the mean of the gradients that wait for more batches.

    Gradients of fewer than `accumulation_steps` batches wait in the optimizer, and in files of the model, for the next
    `fit`. At the very end of training this makes them count. Each batch counts alike, also one that is smaller than the
    others, as in every update of several batches.

    Args:
        model: a compiled model.

    Returns:
        int. Batches that went into the update; 0, and no update, where none was left.

    Raises:
        ValueError: if the model is not compiled, or its optimizer keeps a moving average of the weights.

    Example:
    ```python
    lm.compile(**pretraining_recipe("igpt_small", objective="ar", steps=1_000, accumulation_steps=8))
    lm.fit(token_ids, batch_size=16)
    apply_leftover_gradients(lm)
    ```
    """
    if getattr(model, "optimizer", None) is None:
        raise ValueError("`model` must be compiled. Received: a model without optimizer")
    optimizer = innermost(model.optimizer)
    if not optimizer.gradient_accumulation_steps:
        return 0
    if optimizer.use_ema:
        raise ValueError(
            "`model` must not have an optimizer with both gradient accumulation and a moving average, which Keras "
            "updates with each batch. Received: use_ema=True"
        )
    return apply_waiting_gradients(optimizer)


class ApplyLeftoverGradients(keras.callbacks.Callback):
    """Calls `apply_leftover_gradients` at the end of each epoch, before its validation.

    Where `accumulation_steps` does not divide the batches of an epoch, its last update is made of the rest.

    Example:
    ```python
    classifier.compile(**finetuning_recipe(learning_rate=0.0003, accumulation_steps=8))
    classifier.fit(token_ids, labels, batch_size=16, epochs=10, callbacks=[ApplyLeftoverGradients()])
    ```
    """

    def on_test_begin(self, logs: Any = None) -> None:
        apply_leftover_gradients(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        apply_leftover_gradients(self.model)
