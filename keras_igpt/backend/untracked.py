"""Hiding attributes from Keras' tracking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Untracked(Generic[ValueT]):
    """Wraps an attribute's value so that Keras does not track and save it as a layer."""

    value: ValueT
