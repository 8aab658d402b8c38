"""A training's log: a file of JSON lines, as `JsonLog` writes it, and TensorBoard's."""

from .training.log import JsonLog, TensorBoardLog, read

__all__ = ["JsonLog", "TensorBoardLog", "read"]
