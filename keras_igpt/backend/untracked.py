"""Keeping a helper model out of the model that owns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Untracked(Generic[ValueT]):
    """Hides an attribute's value from Keras, which would take a model for a layer of its owner, and save it.

    Args:
        value: what is hidden.
    """

    value: ValueT
