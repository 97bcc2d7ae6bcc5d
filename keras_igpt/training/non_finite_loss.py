"""Stops a run whose loss is not finite."""

from __future__ import annotations

import math
from typing import Any

import keras


class StopAtNonFiniteLoss(keras.callbacks.Callback):
    """Raises an error with step, batch and learning rate when the loss becomes NaN or infinite.

    The models of this package add it to `fit` themselves, unless `callbacks` is a `CallbackList`. The loss is read
    while the device goes on, so a few steps may follow the named one; `ExactResume` saves no state that is not finite.

    Raises:
        FloatingPointError: from `fit`.

    Example:
    ```python
    try:
        lm.fit(batches, epochs=10)
    except FloatingPointError as error:
        print(error)  # step, batch and learning rate
    ```
    """

    # Keras then runs `on_train_batch_end` beside the device's work instead of waiting for each step.
    async_safe = True

    def __init__(self) -> None:
        super().__init__()
        self._losses: dict[int, float] = {}
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._losses = epoch, {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # The mean of the epoch so far: it is finite until the first loss that is not.
        self._losses[batch] = float((logs or {}).get("loss", 0.0))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._check()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._check()

    def _check(self) -> None:
        # In order: threads may have reported a later batch first.
        for batch in sorted(self._losses):
            loss = self._losses.pop(batch)
            if not math.isfinite(loss):
                optimizer = self.model.optimizer
                half = self.model.dtype_policy.name == "float16"
                advice = " So may the policy mixed_float16, whose loss is scaled." if half else ""
                raise FloatingPointError(
                    f"The loss became {loss} in batch {batch + 1} of epoch {self._epoch + 1}, at optimizer step "
                    f"{int(keras.ops.convert_to_numpy(optimizer.iterations))} or just before it, with learning rate "
                    f"{float(keras.ops.convert_to_numpy(optimizer.learning_rate)):.3g}. A smaller rate, a longer "
                    f"warm-up or `clip_norm` may help.{advice}"
                )
