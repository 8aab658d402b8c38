"""The language model: a vocabulary and a network over its ids.

model          `CharLM`
beam           the likeliest text
dynamic        a model that learns from the text it predicts
sampler        drawing texts
scorer         log-probabilities of texts
small_weights  weights in fewer bits
walk           a text chosen or drawn symbol by symbol
"""
