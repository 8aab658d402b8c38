"""What may watch a training: the base of all callbacks, and what they are told."""

from .training.callbacks import Callback, Evaluation, Update

__all__ = ["Callback", "Evaluation", "Update"]
