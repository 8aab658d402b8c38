"""Learning-rate schedules: what the learning rate is multiplied by as a training goes on."""

from .training.schedules import Constant, Cosine, Decay, Linear, Plateau, Schedule

__all__ = ["Constant", "Cosine", "Decay", "Linear", "Plateau", "Schedule"]
