"""The language model: a vocabulary and a network over its ids.

model          `CharLM`
sampler        drawing texts
scorer         log-probabilities of texts
small_weights  weights in fewer bits
"""
