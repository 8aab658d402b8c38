"""Callbacks: their base class, and the events of training that they are told of."""

from .training.callbacks import Callback, Evaluation, Update

__all__ = ["Callback", "Evaluation", "Update"]
