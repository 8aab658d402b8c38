"""Learning-rate schedules: the factor on the learning rate over a training."""

from .training.schedules import Constant, Cosine, Decay, Linear, Plateau, Schedule

__all__ = ["Constant", "Cosine", "Decay", "Linear", "Plateau", "Schedule"]
