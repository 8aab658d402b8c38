"""The math of the kernels in NumPy, short enough to read in one sitting. Imports NumPy only.

cells     one step of a layer: the equations
layers    one layer in one direction over a sequence: layer norm, masks, projection
network   layers, directions, decoder; the article's class
masks     random numbers, dropout, zoneout
losses    losses, clipping
optim     optimizers
dynamic   dynamic evaluation
sampling  drawing tokens
number_types  how the operands of matrix products are rounded

Everything is a plain function of arrays, in any floating dtype. Each backward stands under its
forward. Shapes: T seq_len, B batch, I input_size, H hidden_size, L num_layers, D directions
(1 or 2), G num_gates, P proj_size, R width of h (P, or H without a projection), V output_size.
Time comes first, batch second; one row of a matrix belongs to one unit.

    the article     shape       the name in a dict of parameters (PyTorch's)
    W_xh            [G*H, I]    weight_ih_l0   (upper layers: weight_ih_l1 [G*H, D*R], ...)
    W_hh            [G*H, R]    weight_hh_l0
    b_h             [G*H]       bias_ih_l0 + bias_hh_l0   (bias="single": bias_ih_l0 alone)
    (peepholes)     [3, H]      weight_peephole_l0   (peephole_lstm: those of i, f, o)
    (gains)         [G*H]       gain_ih_l0, gain_hh_l0   (layer_norm)
    (projection)    [P, H]      weight_hr_l0   (proj_size)
    W_hy            [V, D*R]    decoder.weight
    b_y             [V]         decoder.bias

The other direction's weights are named weight_ih_l0_reverse and so on. A state is h [L*D, B, R]
(rnn, gru) or (h, c), with c [L*D, B, H] (the LSTMs); layer l's direction d is row l*D + d.

Sources: "the article" is A. Karpathy, The Unreasonable Effectiveness of Recurrent Neural Networks
(2015) and its program min-char-rnn; LSTM: Hochreiter and Schmidhuber (1997) with the forget gate
of Gers et al. (2000), its variants: Greff et al., LSTM: A Search Space Odyssey (2017), its
projection: Sak et al. (2014); GRU: Cho et al. (2014), with the reset gate behind the matrix
product, as in cuDNN and PyTorch; two directions: Schuster and Paliwal (1997). Gate order and
formulas are those of torch.nn.RNN, LSTM and GRU. Other sources are named where they are used.
"""

from __future__ import annotations

from .arrays import Array as Array
from .arrays import Parameters as Parameters
from .arrays import State as State
from .dynamic import dynamic_evaluation, mean_squares
from .losses import (
    binary_cross_entropy,
    clip_grad_norm,
    clip_grad_value,
    cross_entropy,
    mean_square,
)
from .masks import (
    INPUT,
    OUTPUT,
    RECURRENT,
    WEIGHT_DROP,
    ZONEOUT_C,
    ZONEOUT_H,
    Regularization,
    mask,
    multipliers,
    philox,
    site,
    uniform,
)
from .network import RNN, Cache, backward, forward, init_parameters
from .optim import SGD, Adagrad, Adam, AdamW, RMSprop
from .sampling import sample, sample_tokens

__all__ = [
    "INPUT",
    "OUTPUT",
    "RECURRENT",
    "RNN",
    "SGD",
    "WEIGHT_DROP",
    "ZONEOUT_C",
    "ZONEOUT_H",
    "Adagrad",
    "Adam",
    "AdamW",
    "Cache",
    "RMSprop",
    "Regularization",
    "backward",
    "binary_cross_entropy",
    "clip_grad_norm",
    "clip_grad_value",
    "cross_entropy",
    "dynamic_evaluation",
    "forward",
    "init_parameters",
    "mask",
    "mean_square",
    "mean_squares",
    "multipliers",
    "philox",
    "sample",
    "sample_tokens",
    "site",
    "uniform",
]
