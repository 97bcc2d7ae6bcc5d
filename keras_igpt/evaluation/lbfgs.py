"""L-BFGS for smooth convex functions, on the host."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Objective = Callable[[Float64Array], tuple[float, Float64Array]]

# Largest gradient entry of a converged fit; scikit-learn's default.
_TOLERANCE = 1e-4

# Largest expected gain of the next step, relative to the value, of a converged fit. The gradient alone does not
# suffice: it is small from the start if a fit with large C starts from one with smaller C.
_GAIN = 1e-5

# Pairs of steps and gradient changes in memory, as in scikit-learn.
_MEMORY = 10


def minimize(
    objective: Objective,
    start: Float64Array,
    precondition: Callable[[Float64Array], Float64Array],
    max_iterations: int,
) -> tuple[Float64Array, int, bool]:
    """Minimises a smooth convex function by L-BFGS with steps that meet the strong Wolfe conditions.

    Args:
        objective: returns the value (positive, of float32 precision) and the gradient at a point.
        start: float64 array.
        precondition: multiplies an array by an approximate inverse Hessian.
        max_iterations: int.

    Returns:
        The final point, the iterations, and whether it converged: no gradient entry above 1e-4, and an expected gain of
        at most 1e-5 of the value.

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
            if not memory:  # only rounding errors are left
                return point, iteration, False
            memory.clear()
            continue
        new_point, value, new_gradient = found
        # The Wolfe conditions guarantee positive curvature along the step.
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
    """Finds a point along a direction that meets the strong Wolfe conditions; None if rounding prevents it."""
    slope = float(np.vdot(gradient, direction))
    # Float32 cannot resolve smaller differences; then the slope decides.
    rounding = 1e-7 * max(1.0, abs(value))
    low: tuple[float, float, float] = (0.0, value, slope)
    high: tuple[float, float, float] | None = None
    length = 1.0
    for _ in range(30):
        trial = point + length * direction
        trial_value, trial_gradient = objective(trial)
        trial_slope = float(np.vdot(trial_gradient, direction))
        too_high = not trial_value <= value + 1e-4 * length * slope + rounding  # True for NaN
        if not too_high and abs(trial_slope) <= 0.9 * abs(slope):
            return trial, trial_value, trial_gradient
        if too_high or trial_slope > 0:
            high = (length, trial_value, trial_slope)
        else:
            low = (length, trial_value, trial_slope)
        length = 4.0 * length if high is None else _between(low, high)
    return None


def _between(low: tuple[float, float, float], high: tuple[float, float, float]) -> float:
    """Returns the minimum of the cubic through two points' values and slopes, kept away from both ends."""
    (start, start_value, start_slope), (end, end_value, end_slope) = low, high
    width = end - start
    first = start_slope + end_slope - 3 * (end_value - start_value) / width
    root = math.sqrt(max(first**2 - start_slope * end_slope, 0.0))
    denominator = end_slope - start_slope + 2 * root
    share = 1 - (end_slope + root - first) / denominator if denominator else 0.5
    return start + width * (min(max(share, 0.1), 0.9) if math.isfinite(share) else 0.1)
