"""Training logs: JSON lines, as `JsonLog` writes them, and TensorBoard's format."""

from .training.log import JsonLog, TensorBoardLog, read

__all__ = ["JsonLog", "TensorBoardLog", "read"]
