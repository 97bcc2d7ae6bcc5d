"""L-BFGS: minimising a smooth convex function of many parameters on the host."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Objective = Callable[[Float64Array], tuple[float, Float64Array]]

# Largest entry of the mean objective's gradient at which a fit counts as converged; scikit-learn's default.
_TOLERANCE = 1e-4

# Share of the objective that a further step may be expected to gain. The gradient alone is small from the start where a
# fit at a large C starts from one at a smaller C, however far the minimum is.
_GAIN = 1e-5

# Pairs of steps and changes of the gradient that L-BFGS remembers; scikit-learn's number.
_MEMORY = 10


def minimize(
    objective: Objective,
    start: Float64Array,
    precondition: Callable[[Float64Array], Float64Array],
    max_iterations: int,
) -> tuple[Float64Array, int, bool]:
    """Minimises a smooth convex function by L-BFGS with steps that meet the strong Wolfe conditions.

    Args:
        objective: gives value, positive and to float32's precision, and gradient of an array.
        start: float64 array.
        precondition: gives the product of a guess of the inverse Hessian with an array.
        max_iterations: int.

    Returns:
        The last array, the iterations, and whether it converged: no entry of the gradient above 1e-4, and a next step
        that promises at most 1e-5 of the value.

    Reference:
        [Liu & Nocedal, 1989, On the Limited Memory BFGS Method](https://doi.org/10.1007/BF01589116)
    """
    point = start
    value, gradient = objective(point)
    memory: deque[tuple[Float64Array, Float64Array]] = deque(maxlen=_MEMORY)
    for iteration in range(max_iterations):
        direction = -_inverse_hessian_product(gradient, memory, precondition)
        if _converged(value, gradient, direction):
            return point, iteration, True
        found = _wolfe_step(objective, point, direction, value, gradient)
        if found is None:
            if not memory:  # what is left is rounding
                return point, iteration, False
            memory.clear()
            continue
        new_point, value, new_gradient = found
        # The conditions that the step meets make the curvature along it positive.
        memory.append((new_point - point, new_gradient - gradient))
        point, gradient = new_point, new_gradient
    direction = -_inverse_hessian_product(gradient, memory, precondition)
    return point, max_iterations, _converged(value, gradient, direction)


def _converged(value: float, gradient: Float64Array, direction: Float64Array) -> bool:
    expected_gain = -0.5 * float(np.vdot(gradient, direction))
    return bool(np.abs(gradient).max() <= _TOLERANCE) and expected_gain <= _GAIN * value


def _inverse_hessian_product(
    gradient: Float64Array,
    memory: deque[tuple[Float64Array, Float64Array]],
    precondition: Callable[[Float64Array], Float64Array],
) -> Float64Array:
    product = gradient.copy()
    weights = []
    for step, change in reversed(memory):
        weight = np.vdot(step, product) / np.vdot(step, change)
        product -= weight * change
        weights.append(weight)
    product = precondition(product)
    if memory:
        step, change = memory[-1]
        product *= np.vdot(step, change) / np.vdot(change, precondition(change))
    for (step, change), weight in zip(memory, reversed(weights), strict=True):
        product += (weight - np.vdot(change, product) / np.vdot(step, change)) * step
    return product


def _wolfe_step(
    objective: Objective,
    point: Float64Array,
    direction: Float64Array,
    value: float,
    gradient: Float64Array,
) -> tuple[Float64Array, float, Float64Array] | None:
    """Finds a point along a direction whose value and slope are enough lower; None where rounding hides it."""
    slope = float(np.vdot(gradient, direction))
    # Float32 cannot tell values apart that are nearer than this; then the slope decides.
    rounding = 1e-7 * max(1.0, abs(value))
    low: tuple[float, float, float] = (0.0, value, slope)
    high: tuple[float, float, float] | None = None
    length = 1.0
    for _ in range(30):
        trial = point + length * direction
        trial_value, trial_gradient = objective(trial)
        trial_slope = float(np.vdot(trial_gradient, direction))
        too_high = not trial_value <= value + 1e-4 * length * slope + rounding  # not a number is too high
        if not too_high and abs(trial_slope) <= 0.9 * abs(slope):
            return trial, trial_value, trial_gradient
        if too_high or trial_slope > 0:
            high = (length, trial_value, trial_slope)
        else:
            low = (length, trial_value, trial_slope)
        length = 4.0 * length if high is None else _between(low, high)
    return None


def _between(low: tuple[float, float, float], high: tuple[float, float, float]) -> float:
    """The minimum of the cubic through lengths, values and slopes of two points, kept off both ends."""
    (start, start_value, start_slope), (end, end_value, end_slope) = low, high
    width = end - start
    first = start_slope + end_slope - 3 * (end_value - start_value) / width
    root = math.sqrt(max(first**2 - start_slope * end_slope, 0.0))
    denominator = end_slope - start_slope + 2 * root
    share = 1 - (end_slope + root - first) / denominator if denominator else 0.5
    return start + width * (min(max(share, 0.1), 0.9) if math.isfinite(share) else 0.1)
