"""Networks with every option of the layers, inputs for them, and ways to run them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import charrnn_fast as cf
from cases import UNITS, Array, Case, named
from charrnn_fast import reference
from charrnn_fast.reference import Regularization
from tolerances import assert_same_bits, network

LSTMS = ("lstm", "peephole_lstm", "coupled_lstm")
ALL_UNITS = (*UNITS, *LSTMS[1:])


NOTHING = Regularization()


@dataclass(frozen=True)
class FeatureCase(Case):
    """A `Case` with any of the layers' options; a few steps of a few rows, as they take long."""

    seq_len: int = 4
    batch: int = 5
    hidden_size: int = 5
    bidirectional: bool = False
    proj_size: int = 0
    layer_norm: bool = False
    ragged: bool = False  # rows of other lengths than seq_len
    regularization: Regularization = NOTHING
    mask_seed: int | None = 11

    @property
    def kind(self) -> dict[str, Any]:
        cell, _, nonlinearity = self.unit.partition("_")
        if cell == "rnn":
            return {"cell": cell, "nonlinearity": nonlinearity}
        return {"cell": self.unit, "nonlinearity": "tanh"}

    @property
    def num_states(self) -> int:
        return 2 if self.unit in LSTMS else 1

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def width(self) -> int:
        """Of h in one direction."""
        return self.proj_size or self.hidden_size

    @property
    def terms(self) -> int:
        upper = self.directions * self.width if self.num_layers > 1 else 0
        normalized = 4 * self.hidden_size if self.layer_norm else 0
        return max(super().terms, upper + self.width, normalized)

    @property
    def steps(self) -> int:
        """As of a `Case`; mean and variance on both sides and the projection are further sums."""
        sums = 1 + 4 * self.layer_norm + (self.proj_size > 0)
        return sums * super().steps

    @property
    def tolerance(self) -> float:
        """For two ways to compute the same, both of which round."""
        return 2 * network(self.dtype, terms=self.terms, steps=self.steps)

    @property
    def shape(self) -> dict[str, Any]:
        """The keywords of the shape of the layers."""
        return {
            "bidirectional": self.bidirectional,
            "proj_size": self.proj_size,
            "layer_norm": self.layer_norm,
        }

    def parameters(self, **options: Any) -> dict[str, Array]:
        """As they are drawn but for the gains, which would hide behind their 1."""
        parameters = super().parameters(**self.shape, **options)
        for n, (name, p) in enumerate(parameters.items()):
            if name.startswith("gain"):
                p += self._draw(200 + n, *p.shape) / 2
            elif self.layer_norm and name.startswith(("weight_ih", "weight_hh", "weight_hr")):
                # its derivatives grow with the inverse of what it normalizes
                p *= 4
        return parameters

    def network(self, **options: Any) -> cf.RNN:
        rates = self.regularization._asdict()
        if self.unit not in LSTMS:
            rates["zoneout"] = (rates["zoneout"][0], 0.0)
        with warnings.catch_warnings():  # dropout with one layer does nothing, by both
            warnings.filterwarnings("ignore", r"dropout=\S+ does nothing")
            return super().network(**self.shape, **rates, **options)

    def but(self, **changes: Any) -> FeatureCase:
        return replace(self, **changes)

    def lengths(self) -> Array | None:
        """The whole sequence, none of it, and what lies between, in no order."""
        T = self.seq_len
        return (
            np.resize([T // 2, T, 0, min(T, 1), max(T - 1, 0)], self.batch) if self.ragged else None
        )

    def dy(self) -> Array:
        features = self.output_size or self.directions * self.width
        return self._draw(2, self.seq_len, self.batch, features)

    def _state(self, stream: int) -> Any:
        rows = self.num_layers * self.directions, self.batch
        h = self._draw(stream, *rows, self.width)
        if self.num_states == 1:
            return h
        return h, self._draw(stream + 100, *rows, self.hidden_size)

    def options(self) -> dict[str, Any]:
        """The keywords of `reference.forward`."""
        return {
            **self.kind,
            "lengths": self.lengths(),
            "regularization": self.regularization,
            "mask_seed": self.mask_seed,
            "compute_dtype": self.compute_dtype,
        }


class ByReference:
    """A case's network in NumPy, with the parameters as they are at each forward."""

    def __init__(self, case: FeatureCase, parameters: dict[str, Array]) -> None:
        self._parameters, self._options = parameters, case.options()

    def forward(self, x: Array, state: Any) -> tuple[Array, Any]:
        y, last, self._cache = reference.forward(self._parameters, x, state, **self._options)
        return y, last

    def backward(self, dy: Array, dstate: Any) -> Any:
        return reference.backward(self._parameters, self._cache, dy, dstate)


class ByKernels:
    """The same network of the package."""

    def __init__(
        self, case: FeatureCase, parameters: dict[str, Array], device: str = "cpu"
    ) -> None:
        self._parameters, self.network = parameters, case.network(device=device)
        self._lengths, self._mask_seed = case.lengths(), case.mask_seed

    def forward(self, x: Array, state: Any) -> tuple[Array, Any]:
        self.network.load_parameters(self._parameters)
        return self.network.forward(x, state, lengths=self._lengths, mask_seed=self._mask_seed)

    def backward(self, dy: Array, dstate: Any) -> Any:
        return self.network.backward(dy, dstate)


def run(
    parameters: dict[str, Array],
    case: FeatureCase,
    by: Callable[[FeatureCase, dict[str, Array]], Any] = ByReference,
) -> dict[str, Array]:
    """One forward and backward."""
    network = by(case, parameters)
    y, state = network.forward(case.x(), case.state())
    return dict(named(y, state, *network.backward(case.dy(), case.dstate())))


def assert_bits_of_kernels(
    case: FeatureCase, by: Callable[[FeatureCase, dict[str, Array]], Any]
) -> None:
    """Another way to the same network has the bits of the package's own."""
    parameters = case.parameters()
    found, expected = run(parameters, case, by), run(parameters, case, ByKernels)
    assert list(found) == list(expected)
    for name, value in expected.items():
        # beyond the end of a row one has 0 and the other -0
        zero = np.zeros((), value.dtype)
        assert_same_bits(name, found[name] + zero, value + zero)


DROPOUTS = Regularization(0.3, 0.3, 0.3, 0.3)
# what is tried on every kind of unit that takes it, one at a time
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bidirectional": {"bidirectional": True},
    "projected": {"proj_size": 3},
    "layer_norm": {"layer_norm": True},
    "ragged": {"ragged": True},
    "dropout": {"regularization": Regularization(dropout=0.4)},
    "input_dropout": {"regularization": Regularization(input_dropout=0.4)},
    "output_dropout": {"regularization": Regularization(output_dropout=0.4)},
    "recurrent_dropout": {"regularization": Regularization(recurrent_dropout=0.4)},
    "variational": {"regularization": DROPOUTS._replace(variational=True)},
    "weight_drop": {"regularization": Regularization(weight_drop=0.4)},
    "zoneout_h": {"regularization": Regularization(zoneout=(0.4, 0.0))},
    "zoneout_c": {"regularization": Regularization(zoneout=(0.0, 0.4))},
    "expected_zoneout": {
        "regularization": DROPOUTS._replace(zoneout=(0.2, 0.4)),
        "mask_seed": None,
    },
}


def single_features() -> Iterator[FeatureCase]:
    for unit in ALL_UNITS:
        for name, options in FEATURES.items():
            if unit in LSTMS or name not in ("projected", "zoneout_c"):
                yield FeatureCase(unit, num_layers=2, dtype="float64", output_size=3, **options)


def combinations() -> Iterator[FeatureCase]:
    """Everything at once, then what is left when each feature in turn is taken out."""
    for unit in ALL_UNITS:
        projections = (0, 3) if unit in LSTMS else (0,)
        for proj_size in projections:
            zoneout = (0.0, 0.3) if proj_size else (0.2, 0.3)
            full = FeatureCase(
                unit,
                num_layers=2,
                dtype="float64",
                output_size=3,
                bidirectional=True,
                proj_size=proj_size,
                layer_norm=True,
                ragged=True,
                regularization=DROPOUTS._replace(weight_drop=0.3, zoneout=zoneout),
            )
            rates = full.regularization
            yield full
            yield full.but(tokens=True, regularization=rates._replace(variational=True))
            yield full.but(bidirectional=False, output_size=None, bias="single")
            yield full.but(layer_norm=False, tokens=True, num_layers=3)
            yield full.but(ragged=False, bias="single", num_layers=1)
            yield full.but(mask_seed=None, output_size=None, tokens=True)


def label(case: FeatureCase) -> str:
    """Names a case in pytest's output: what is not the default."""
    default = FeatureCase(dtype="float64", output_size=3, num_layers=2)
    changed = [n for n in vars(case) if getattr(case, n) != getattr(default, n) and n != "unit"]
    values = [(name, getattr(case, name)) for name in changed]
    named_values = [
        *(f"{n}={v}" for n, v in values if n != "regularization"),
        *(
            f"{n}={v}"
            for n, v in case.regularization._asdict().items()
            if v not in (0.0, (0.0, 0.0))
        ),
    ]
    return "-".join([case.unit, *named_values]).replace(" ", "")
