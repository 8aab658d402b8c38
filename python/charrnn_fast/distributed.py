"""Training by several processes that torchrun has started: ``with joined() as group``, then
``Trainer(model, corpus, group=group)``.
"""

from .training.distributed import EndedError, Group, LostError, joined

__all__ = ["EndedError", "Group", "LostError", "joined"]
