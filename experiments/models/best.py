"""The method that we recommend where a new item's content is all that is known of it."""

from experiments.models.hybrid import METHOD

__all__ = ["METHOD"]
