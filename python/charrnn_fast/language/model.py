"""A character-level language model: a vocabulary and a recurrent network over its ids."""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from .. import _core, _devices
from .._checks import (
    LARGEST_SEED,
    StrPath,
    called,
    calling,
    instance,
    integer,
    real,
    telling,
    warn,
)
from .._names import suggesting
from .._objects import Settled
from ..registry import DROPOUT_RATES
from ..rnn import RNN, check_compute_dtype
from ..storage import checkpoint, configuration
from ..storage.file_array import Ids
from ..text.documents import cut
from ..text.vocabulary import Vocabulary
from . import small_weights
from .beam import Likeliest, find_likeliest
from .dynamic import Adapting, Dynamic, Squares
from .sampler import (
    REPETITION_WINDOW,
    Request,
    Sampling,
    Stop,
    check_weight_dtype,
    checked_stops,
    draw_pieces,
    draw_texts,
    drawing_from,
)
from .scorer import log_probabilities, log_probabilities_by_blocks
from .small_weights import SMALL_DTYPES
from .walk import Walk

_Text = TypeVar("_Text", str, bytes, str | bytes)

STATES = ("h", "c")  # names of a cell's states, in the kernels' order
_EVALUATION_BLOCK = 1024  # steps: bounds the memory, and lets an interrupt through

_StartsWithin = Callable[[int, int], NDArray[np.int64]]
"""The positions in a range at which documents begin."""


class CharLM(Settled):
    """Predicts the next character (or byte) of a text from all that came before.

    `rnn` is the network: its inputs are ids of `vocabulary`, its outputs the logits of the next id.
    See `RNN` for every keyword. Both attributes are read-only.

    Deep copies and pickles are those of `RNN`. To store a model, use `save`.
    """

    vocabulary: Vocabulary
    rnn: RNN

    _advice = {  # noqa: RUF012
        "": "a model is made of its vocabulary and its network; make another CharLM, whose "
        "rnn.load_parameters takes this one's rnn.parameters()",
        "last_seed": "give sample() a seed",
        "num_parameters": "it is counted",
    }
    _covered = frozenset(("_config", "_last_seed", "_weight_dtype"))

    @suggesting
    def __init__(
        self,
        vocabulary: Vocabulary,
        hidden_size: int = 128,
        num_layers: int = 2,
        cell: str = "lstm",
        seed: int = 0,
        dtype: str = "float32",
        *,
        nonlinearity: str = "tanh",
        bias: bool | str = True,
        init: str = "lecun_tokens",
        forget_bias: float | None = 1.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        layer_norm: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        output_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        variational: bool = False,
        weight_drop: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        compute_dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        """Draws the weights from `seed` by the method init, see `RNN`.

        init="lecun_tokens" needs several times fewer updates at the start of training than
        PyTorch's "uniform" (docs/training.md has figures). forget_bias: initial forget-gate bias of
        the LSTMs (Gers et al., 2000; Jozefowicz et al., 2015); None: as drawn. Dropout, zoneout and
        other regularization act in training only; `evaluate` and `sample` use the whole network.
        bidirectional must be False: a language model cannot read the text that it predicts. device:
        where it computes, see `RNN`; files do not store it. Raises ValueError for fewer than two
        symbols.
        """
        instance("vocabulary", vocabulary, Vocabulary, "a Vocabulary")
        if bidirectional:
            raise ValueError(
                "bidirectional must be False: a language model cannot read what it is to write"
            )
        size = len(vocabulary)
        if size < 2:
            raise ValueError(
                f"vocabulary must have 2 {vocabulary.unit}s or more, got {vocabulary.shown()} "
                f"alone: nothing is left to predict"
            )
        self.vocabulary = vocabulary
        self.rnn = RNN(
            size,
            hidden_size,
            size,
            cell=cell,
            num_layers=num_layers,
            nonlinearity=nonlinearity,
            bias=bias,
            dtype=dtype,
            seed=seed,
            init=init,
            forget_bias=forget_bias,
            proj_size=proj_size,
            layer_norm=layer_norm,
            dropout=dropout,
            input_dropout=input_dropout,
            output_dropout=output_dropout,
            recurrent_dropout=recurrent_dropout,
            variational=variational,
            weight_drop=weight_drop,
            zoneout=zoneout,
            compute_dtype=compute_dtype,
            device=device,
        )
        # What a checkpoint needs to build the same network.
        self._config: dict[str, Any] = {
            "hidden_size": self.rnn.hidden_size,
            "num_layers": self.rnn.num_layers,
            "cell": self.rnn.cell,
            "seed": int(seed),
            "dtype": self.rnn.dtype.name,
            "nonlinearity": self.rnn.nonlinearity,
            "bias": self.rnn.bias,
            "init": init,
            "forget_bias": None if forget_bias is None else float(forget_bias),
            "proj_size": self.rnn.proj_size,
            "layer_norm": self.rnn.layer_norm,
            **{name: getattr(self.rnn, name) for name in DROPOUT_RATES},
            "variational": self.rnn.variational,
            "zoneout": list(self.rnn.zoneout),
        }
        if compute_dtype != "float32":  # which older versions cannot read
            self._config["compute_dtype"] = compute_dtype
        self._last_seed: int | None = None
        self._weight_dtype: str | None = None

    @property
    def weight_dtype(self) -> str | None:
        """The type of the weights of a file that holds them alone, "bfloat16" or "int8"; else None.

        Such a model samples and evaluates with these weights, and cannot be trained.
        """
        return self._weight_dtype

    @property
    def last_seed(self) -> int | None:
        """The seed of the last text drawn with ``seed=None``; None before that."""
        return self._last_seed

    def settings(self) -> dict[str, Any]:
        """The constructor's keywords for a model like this one, as JSON values; without device."""
        return {**self._config, "compute_dtype": self.rnn.compute_dtype}

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda" or "cuda:N"."""
        return self.rnn.device

    @property
    def num_parameters(self) -> int:
        """The number of weights and biases of the network."""
        return int(self.rnn.core.num_parameters)

    def __repr__(self) -> str:
        config = self._config
        rounded = "" if self.rnn.compute_dtype == "float32" else f", {self.rnn.compute_dtype}"
        where = "" if self.device == _devices.CPU.name else f" on {self.device}"
        return (
            f"<CharLM: {config['cell']}, {config['num_layers']} x {config['hidden_size']}, "
            f"{len(self.vocabulary)} {self.vocabulary.kind}, {self.num_parameters:,} parameters"
            f"{rounded}{where}>"
        )

    def _pickled(self) -> dict[str, Any]:
        return {
            "vocabulary": self.vocabulary,
            "rnn": self.rnn,
            "config": self._config,
            "last_seed": self._last_seed,
            **({"weight_dtype": self._weight_dtype} if self._weight_dtype else {}),
        }

    def _unpickle(self, saved: dict[str, Any]) -> None:
        vocabulary, rnn = saved["vocabulary"], saved["rnn"]
        instance("vocabulary", vocabulary, Vocabulary, "a Vocabulary")
        instance("rnn", rnn, RNN, "an RNN")
        if not len(vocabulary) == rnn.input_size == rnn.output_size:
            raise ValueError(f"rnn must be a network over {len(vocabulary)} symbols, got {rnn!r}")
        self.vocabulary, self.rnn = vocabulary, rnn
        self._config, self._last_seed = saved["config"], saved["last_seed"]
        self._weight_dtype = saved.get("weight_dtype")

    def evaluate(
        self,
        text: str,
        *,
        weight_dtype: str | None = None,
        allow_unknown: bool = False,
        dynamic: Dynamic | None = None,
    ) -> float:
        """The mean loss of text in nats per character (or byte), from the zero state.

        This is the mean of -ln p(next | before) over ``len(text) - 1`` characters, in one stream:
        the first one is not predicted. weight_dtype: the loss of the model that `sample` draws from
        with it, its rounded weights multiplied in float32. Raises ValueError for fewer than two
        characters and for a character that is not in the vocabulary. allow_unknown: such characters
        are left out, neither read nor predicted, and a warning says how many.

        dynamic: the loss of a copy that learns from the text as it goes, see `Dynamic`. The model
        itself stays as it is. Raises FloatingPointError if the copy diverges.
        """
        if allow_unknown:
            text = self.known("text", text)
        ids = self.vocabulary.encode(text)
        if dynamic is None:
            return self.read_as(weight_dtype).evaluate_ids(ids)
        if weight_dtype is not None:
            raise ValueError(
                f"give {called('weight_dtype')} or {called('dynamic')}, not both: rounded weights "
                f"do not learn"
            )
        return self._adapted(ids, dynamic)[1]

    def adapted(self, text: str, dynamic: Dynamic) -> CharLM:
        """A copy that has learned from text as `evaluate` with `dynamic` does, for sampling.

        It draws what follows with ``copy.sample(n, prime=text)``; while it draws, it learns no
        more. Raises as `evaluate`.
        """
        return self._adapted(self.vocabulary.encode(text), dynamic)[0]

    def _adapted(self, ids: Ids, dynamic: Dynamic) -> tuple[CharLM, float]:
        """The adapted copy, and its loss on the way."""
        instance("dynamic", dynamic, Dynamic, "a charrnn_fast.Dynamic")
        self.check_learns()
        self._check_length(len(ids))
        squares = None
        if dynamic.statistics is not None:
            given = self.vocabulary.encode_part(dynamic.statistics, "statistics", 0)
            squares = Squares(self.rnn, given, dynamic.segment)
        model, adapting = self.adapting(dynamic, squares)
        return model, self.evaluate_ids(ids, None, adapting)

    def adapting(self, dynamic: Dynamic, squares: Squares | None) -> tuple[CharLM, Adapting]:
        """A copy of this model, and what adapts it as it reads. squares: of the statistics."""
        self.check_learns()
        model = copy.deepcopy(self)
        return model, Adapting(model.rnn, dynamic, squares)

    def check_learns(self) -> None:
        """ValueError if this model holds rounded weights alone."""
        if self._weight_dtype:
            raise ValueError(
                f"{called('dynamic')} takes a model with all of its weights, got one that holds "
                f"{self._weight_dtype} weights alone"
            )

    def extended(self, vocabulary: Vocabulary, seed: int | None = None) -> CharLM:
        """This model with a vocabulary that `Vocabulary.extended` has made of its own.

        The weights of the old characters stay, so that their logits do. The input weights and the
        rows of the decoder for the new ones are those of a new model with this seed (None: this
        model's). Their decoder biases are the lowest of the old ones: until training changes that,
        a new character is about as likely as the rarest that the model knows. Raises ValueError if
        the vocabulary does not extend this one's.
        """
        if self.weight_dtype is not None:
            raise ValueError(
                f"a model must have all bits of its weights to be extended, got one that holds "
                f"{self.weight_dtype} weights alone: take the one that it was exported from"
            )
        settings = self.settings() if seed is None else {**self.settings(), "seed": seed}
        with telling(lambda _: None):  # of what was warned of before
            new = CharLM(vocabulary, **settings, device=self.device)
        new.rnn.load_parameters(self.weights_for(new))
        return new

    def weights_for(self, new: CharLM) -> dict[str, NDArray[Any]]:
        """The parameters of `extended`; new: a drawn model of its shape and vocabulary."""
        ours, theirs = self.vocabulary, new.vocabulary
        size = len(ours)
        if ours.unknown_id != theirs.unknown_id or not np.array_equal(
            ours.symbols, theirs.symbols[:size]
        ):
            raise ValueError(
                f"{called('vocabulary')} must extend that of the model, {ours!r}, got {theirs!r}; "
                f"make it by model.vocabulary.extended(text)"
            )
        old = self.rnn.parameters()
        weights = {}
        for name, drawn in new.rnn.parameters(copy=True).items():
            if name == "weight_ih_l0":
                drawn[:, :size] = old[name]
            elif name.startswith("decoder."):
                drawn[:size] = old[name]
                if drawn.ndim == 1:
                    drawn[size:] = old[name].min()
            else:
                drawn[...] = old[name]
            weights[name] = drawn
        return weights

    def known(self, name: str, text: _Text) -> _Text:
        """text without characters that the vocabulary lacks; a warning says how many they are."""
        known, count = self.vocabulary.without_unknown(text)
        if count:
            warn(
                f"{called(name)} has {count:,} character{'s' * (count > 1)} that the vocabulary "
                f"lacks; {'they are' if count > 1 else 'it is'} left out"
            )
        return known

    def score(
        self,
        texts: Iterable[str],
        *,
        weight_dtype: str | None = None,
        allow_unknown: bool = False,
    ) -> NDArray[np.float64]:
        """The log-probability of each text, in nats [N], computed as one batch.

        It sums over all characters (or bytes) of a text, each given those before it. The network
        starts from the zero state and reads a newline first, as `sample` does for an empty prime:
        the score is the log-probability that ``sample(len(text))`` gives this text. An empty text
        scores 0. To score whole lines, pass ``line + "\\n"``: the probabilities of all lines add up
        to 1. Other texts in the batch change nothing. weight_dtype as in `evaluate`. Raises
        ValueError for a character that is not in the vocabulary; with allow_unknown, a text with
        one scores -inf.
        """
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
            raise TypeError(f"texts must be a sequence of strings, got {type(texts).__name__}")
        ids: list[NDArray[np.int32]] = []
        known: list[bool] = []
        for i, text in enumerate(texts):
            known.append(not allow_unknown or not self.vocabulary.without_unknown(text)[1])
            part = text if known[-1] else ""
            ids.append(self.vocabulary.encode_part(part, f"texts[{i}]", 0))
        scores = self.read_as(weight_dtype).score_ids(ids)
        scores[~np.array(known, np.bool_)] = -np.inf
        return scores

    @overload
    def sample(
        self,
        length: int,
        prime: str = "",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        *,
        seeds: None = None,
        stop: Stop = None,
        weight_dtype: str | None = None,
        allow_unknown: bool = False,
        repetition_penalty: float = 1.0,
        repetition_window: int = REPETITION_WINDOW,
    ) -> str: ...

    @overload
    def sample(
        self,
        length: int,
        prime: str = "",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        *,
        seeds: Sequence[int],
        stop: Stop = None,
        weight_dtype: str | None = None,
        allow_unknown: bool = False,
        repetition_penalty: float = 1.0,
        repetition_window: int = REPETITION_WINDOW,
    ) -> list[str]: ...

    @suggesting
    def sample(
        self,
        length: int,
        prime: str = "",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        *,
        seeds: Sequence[int] | None = None,
        stop: Stop = None,
        weight_dtype: str | None = None,
        allow_unknown: bool = False,
        repetition_penalty: float = 1.0,
        repetition_window: int = REPETITION_WINDOW,
    ) -> str | list[str]:
        """prime and a continuation of `length` characters (or bytes) drawn from the model.

        temperature divides the logits: below 1 the text is more likely, above 1 more varied; 0
        always takes the most probable character. top_k: draw from the k most probable characters.
        top_p: draw from the fewest characters that reach this probability together (Holtzman et
        al., 2020). None: from all. For an empty prime the model reads a newline (or the first
        symbol, if there is none), which is not returned.

        seed: 0 to 2**64 - 1; None: a fresh one, kept in `last_seed`. seeds: one text for each,
        drawn as one batch: the same texts as one by one, in less time.

        stop: one string or several. The text ends before the stop string that is completed first
        (the longest, if one draw completes several), or after `length` characters, and is otherwise
        unchanged. Stop strings are not searched for in prime. Raises ValueError for an empty stop
        string and for one with a character that is not in the vocabulary.

        weight_dtype="bfloat16" rounds the weights to bfloat16, which halves the memory that a step
        reads; "int8" rounds them to integers with one scale for each row, which takes a quarter:
        faster if the model exceeds the processor's caches. Arithmetic stays in float32, but that
        products with "int8" are sums of integers (docs/sampling.md). Both are for float32 models,
        "int8" on the CPU alone. `evaluate` with the same argument measures the
        loss from rounding.

        allow_unknown: characters of prime that the vocabulary lacks are left out, and a warning
        says how many.

        repetition_penalty, 1 or more: the logits of the last `repetition_window` characters of the
        text, prime included, are divided by it, or multiplied if negative (Keskar et al., 2019,
        arXiv 1909.05858, section 4.1, which only divides).
        """
        if seeds is not None and seed is not None:
            raise ValueError("give seed or seeds, not both")
        if seeds is None:
            keys = [self._seed(seed)]
        elif isinstance(seeds, Iterable):
            keys = [_checked_seed(key, f"seeds[{i}]") for i, key in enumerate(seeds)]
        else:
            raise TypeError(f"seeds must be a sequence of integers, got {seeds!r}")
        if allow_unknown:
            prime = self.known("prime", prime)
        request = self.request(
            length,
            prime,
            temperature,
            top_k,
            top_p,
            stop,
            weight_dtype,
            repetition_penalty,
            repetition_window,
        )
        texts = list(draw_texts(self.rnn, self.vocabulary, request, keys))
        return texts[0] if seeds is None else texts

    @suggesting
    def stream(
        self,
        length: int,
        prime: str = "",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        *,
        stop: Stop = None,
        weight_dtype: str | None = None,
        allow_unknown: bool = False,
        repetition_penalty: float = 1.0,
        repetition_window: int = REPETITION_WINDOW,
    ) -> Iterator[str]:
        """The text of `sample` with the same arguments, each character as soon as it is drawn.

        The first piece is prime, and no piece is empty. A character of several bytes is never
        split. A possible beginning of a stop string is held back until it is known not to be one.
        """
        key = self._seed(seed)
        if allow_unknown:
            prime = self.known("prime", prime)
        request = self.request(
            length,
            prime,
            temperature,
            top_k,
            top_p,
            stop,
            weight_dtype,
            repetition_penalty,
            repetition_window,
        )
        # Not a generator, which would check the arguments only at the first piece.
        return draw_pieces(self.rnn, self.vocabulary, request, key, 1)

    @suggesting
    def beam_search(
        self,
        length: int,
        prime: str = "",
        beam: int = 8,
        *,
        stop: Stop = None,
        weight_dtype: str | None = None,
    ) -> Likeliest:
        """The likeliest continuation of prime that beam search finds, and its log-probability.

        At each character the `beam` likeliest beginnings are kept. With ``beam=1`` the text is that
        of temperature 0; with as many as there are texts it is the likeliest of all. length, prime,
        stop and weight_dtype as in `sample`, whose other options have no part in it.

        The log-probability, in nats, is that of the characters behind prime; a text that a stop
        string ends includes the stop string. It is what `score` gives for that text, if prime is
        empty and the weights are not "int8". Texts of different lengths compete by it, so that an
        early stop string wins easily. Of equals the text that ended first wins, then the one whose
        beginning was likelier at the step before, then the lower id. Deterministic.

        Raises ValueError as `sample` does, and for a beam outside 1 to 10,000; MemoryError if there
        is less memory than the candidates of a step take, beam times the size of the vocabulary.
        """
        request = self.request(length, prime, 1.0, None, None, stop, weight_dtype)
        return find_likeliest(self.rnn, self.vocabulary, request, integer("beam", beam, 1, 10_000))

    def next_probabilities(
        self, prime: str = "", *, temperature: float = 1.0, weight_dtype: str | None = None
    ) -> NDArray[np.float64]:
        """The probability of each symbol to come next behind prime: [V], by id, of the sum 1.

        ``model.vocabulary`` has the ids. prime, temperature and weight_dtype as in `sample`, but
        temperature must be above 0.
        """
        real("temperature", temperature, above=0)
        request = self.request(1, prime, temperature, None, None, None, weight_dtype)
        with drawing_from(self.rnn):
            return Walk(self.rnn, request, 0).shares()

    def save(self, path: StrPath, *, weight_dtype: str | None = None) -> None:
        """Writes a checkpoint (a safetensors file), replacing a file at path atomically.

        weight_dtype="bfloat16" or "int8": the file holds the weights that `sample` with it reads,
        at half or a quarter of the size, and no others. What is loaded from it draws the same texts
        as this model with that weight_dtype, and cannot be trained.

        Raises FloatingPointError if a weight is not finite, and OSError if path cannot be written
        or holds a file that is not a checkpoint. That file then stays unchanged.
        """
        configuration.write(path, *self.to_checkpoint(weight_dtype))

    @classmethod
    def load(
        cls, path: StrPath, *, device: str = "cpu", compute_dtype: str | None = None
    ) -> CharLM:
        """The model of a checkpoint written by `save` or by `Trainer`, on whichever device.

        device, compute_dtype: where and how it shall compute, see `RNN`; compute_dtype None: as the
        file says. Raises `CheckpointError` if the file is not a checkpoint, is truncated or
        changed, comes from a newer version that this one does not understand, or computes as the
        device cannot. Raises ValueError for a compute_dtype that the device or the model cannot
        have.
        """
        on = _devices.find(device)  # before the file is read
        if compute_dtype is not None:
            check_compute_dtype(compute_dtype, np.dtype(np.float32), on)
        return cls.from_checkpoint(path, *configuration.read(path), device, compute_dtype)

    @classmethod
    def from_checkpoint(
        cls,
        path: StrPath,
        tensors: checkpoint.Tensors,
        config: checkpoint.Config,
        device: str = "cpu",
        compute_dtype: str | None = None,
    ) -> CharLM:
        """The model of what `configuration.read` returns."""
        on = _devices.find(device)
        settings = dict(config["model"])
        if compute_dtype is None:
            stored = settings.get("compute_dtype", "float32")
            known = () if stored == "float32" else _core.compute_dtypes_on(on.capsule)
            if known and stored not in known:
                takes = " or ".join(map(repr, known))
                raise checkpoint.CheckpointError(
                    f"{os.fspath(path)} computes in {stored!r}, which {on.name} cannot: load it "
                    f"with {called('compute_dtype')} {takes}"
                )
        else:
            check_compute_dtype(compute_dtype, np.dtype(settings["dtype"]), on)
            if config.get("weight_dtype") == "int8" and compute_dtype != "float32":
                raise ValueError(
                    f"{called('compute_dtype')} of a model that holds int8 weights alone must be "
                    f"'float32', got {compute_dtype!r}"
                )
            settings["compute_dtype"] = compute_dtype
        try:
            vocabulary = Vocabulary.from_config(_symbols(tensors), config)
            _check_size(tensors, config["model"], len(vocabulary))
            # The settings are the file's, not arguments of this call, and were warned of before.
            with calling({}), telling(lambda _: None):
                model = cls(vocabulary, **settings, device=device)
            model._weight_dtype = config.get("weight_dtype")
            model._check_tensors(tensors, config)
            model.rnn.load_parameters(
                {
                    name: small_weights.restored(
                        model.weight_dtype, name, tensor_name(name), tensors
                    )
                    for name in model.rnn.parameters()
                }
            )
        except (ValueError, TypeError, MemoryError) as error:
            if isinstance(error, MemoryError) and not on.is_host:
                raise MemoryError(f"{os.fspath(path)}: {error}") from None
            raise checkpoint.CheckpointError(
                f"{os.fspath(path)} does not hold the model that it describes: {error}"
            ) from error
        return model

    def _check_tensors(self, tensors: checkpoint.Tensors, config: checkpoint.Config) -> None:
        """ValueError unless tensors are exactly those of this model and of config's training.

        `Trainer` checks which tensors an optimizer has; here each must only match a parameter.
        """
        rnn, training = self.rnn, config.get("training")
        shapes: dict[str, tuple[int, ...]] = rnn.core.parameter_shapes()
        expected = {
            tensor_name(name) + end: kind
            for name, shape in shapes.items()
            for end, kind in small_weights.stored_shapes(
                self.weight_dtype, name, tuple(shape), rnn.dtype
            ).items()
        }
        of_model = dict(expected)
        for name in tensors:
            kind, _, rest = name.partition(".")
            parameter = rest.partition(".")[2]
            if kind == "optimizer" and training and parameter in of_model:
                expected[name] = of_model[parameter]
        if training and "averaged" in training:  # then those of the model are rounded averages
            for name, (dtype, shape) in of_model.items():
                expected[trained_name(name)] = (dtype, shape)
                expected[average_name(name)] = (np.dtype(np.float64), shape)
        if training and training["has_state"]:
            state = tensors.get("state.h", np.empty(0))
            if state.ndim != 3 or not state.shape[1]:
                raise ValueError("the tensor 'state.h' must be there, of the shape [L, B, R]")
            # B, of `Trainer.step`, may differ from the batch_size of `fit`.
            for name, part in zip(STATES, rnn.states.shapes(state.shape[1]), strict=False):
                expected[f"state.{name}"] = (rnn.dtype, part)
        for name in expected:
            if name not in tensors:
                raise ValueError(f"the tensor {name!r} is missing")
        for name, tensor in tensors.items():
            if name == "vocabulary":
                continue
            if name not in expected and name.startswith("state."):
                raise ValueError(f"the tensor {name!r} is there, but training.has_state is false")
            if name not in expected:
                raise ValueError(f"the tensor {name!r} is unknown to this version")
            dtype, shape = expected[name]
            if tensor.dtype != dtype or tensor.shape != shape:
                raise ValueError(
                    f"the tensor {name!r} must be {dtype} of the shape {list(shape)}, got "
                    f"{tensor.dtype} of {list(tensor.shape)}"
                )

    def to_checkpoint(
        self, weight_dtype: str | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Tensors and configuration, as `from_checkpoint` takes them."""
        weight_dtype = self._checked_weight_dtype(weight_dtype)
        tensors = {
            tensor_name(name) + end: part
            for name, p in self.rnn.parameters().items()
            for end, part in small_weights.stored(weight_dtype, name, p).items()
        }
        tensors["vocabulary"] = self.vocabulary.symbols.astype(np.int32)
        config = {"model": self._config, **self.vocabulary.to_config()}
        if weight_dtype in SMALL_DTYPES:
            config["weight_dtype"] = weight_dtype
        return tensors, config

    def _checked_weight_dtype(self, weight_dtype: str | None) -> str | None:
        """The weights to use if weight_dtype is asked for; ValueError if there are none such."""
        own = self._weight_dtype
        if own is not None and weight_dtype not in (None, own):
            raise ValueError(
                f"{called('weight_dtype')} of a model that holds {own} weights alone must be "
                f"{own!r}, got {weight_dtype!r}"
            )
        check_weight_dtype(weight_dtype or own, self.rnn)
        return weight_dtype or own

    def read_as(self, weight_dtype: str | None) -> CharLM:
        """This model, or a copy with the weights that sampling with weight_dtype uses."""
        weight_dtype = self._checked_weight_dtype(weight_dtype)
        if weight_dtype not in SMALL_DTYPES or self._weight_dtype:
            return self
        rounded = copy.deepcopy(self)
        parameters = self.rnn.parameters().items()
        rounded.rnn.load_parameters(
            {name: small_weights.read_as(weight_dtype, name, p) for name, p in parameters}
        )
        return rounded

    def evaluate_ids(
        self,
        ids: Ids,
        starts_within: _StartsWithin | None = None,
        adapting: Adapting | None = None,
    ) -> float:
        """As `evaluate`, for ids [N] and documents as `losses` takes them.

        adapting: a copy of this model that learns as it reads.
        """
        self._check_length(len(ids))
        read = self.losses if adapting is None else adapting.losses
        total = 0.0  # not sum(), which rounds otherwise from Python 3.12 on
        for _, nats in read(ids, None, starts_within):
            total += nats
        return total / (len(ids) - 1)

    def losses(
        self,
        ids: Ids,
        length: int | None = None,
        starts_within: _StartsWithin | None = None,
    ) -> Iterator[tuple[int, float]]:
        """Pairs, block by block: how many of ids [N] were predicted, and their summed loss in nats.

        ids: of any integer type, in memory or in a file. length: number of ids to use, from the
        beginning; None: all. The state is zero where a document begins.
        """
        length = len(ids) if length is None else min(length, len(ids))
        self._check_length(length)
        network: Any = self.rnn.core
        states = self.rnn.states
        state = states.zeros(1)
        for start in range(0, length - 1, _EVALUATION_BLOCK):
            steps = min(_EVALUATION_BLOCK, length - 1 - start)
            block = ids[start : start + steps + 1].astype(np.int32)[:, None]
            starts = () if starts_within is None else starts_within(start, start + steps) - start
            if not len(starts):
                loss, _ = network.evaluate(block[:-1], block[1:], state)
                yield steps, float(loss)
                continue
            begins = np.zeros((steps, 1), np.bool_)
            begins[starts] = True
            parts = cut(block[:-1], block[1:], begins)
            rows = states.joined(parts.first_state(states.parts(state)))
            losses = network.stream_losses(parts.inputs, parts.targets, rows, parts.lengths)
            state = states.joined(parts.last_state(states.parts(rows)))
            yield from zip(parts.lengths.tolist(), losses.tolist(), strict=True)

    def _check_length(self, length: int) -> None:
        if length < 2:
            raise ValueError(
                f"text must have 2 {self.vocabulary.unit}s or more, got {length}: the first is "
                f"given, the others are predicted"
            )

    def score_ids(self, texts: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
        """As `score`, for texts of ids."""
        return log_probabilities(self.rnn, self._first, texts)

    def score_ids_by_blocks(
        self, texts: Sequence[NDArray[np.int32]], most: int
    ) -> Generator[None, None, NDArray[np.float64]]:
        """As `score_ids`, with a pause after each block of at most `most` texts."""
        return log_probabilities_by_blocks(self.rnn, self._first, texts, most)

    def _seed(self, seed: int | None) -> int:
        if seed is not None:
            return _checked_seed(seed)
        self._last_seed = secrets.randbits(64)
        return self._last_seed

    def request(
        self,
        length: int,
        prime: str | bytes,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        stop: Stop,
        weight_dtype: str | None,
        repetition_penalty: float = 1.0,
        repetition_window: int = REPETITION_WINDOW,
    ) -> Request:
        """The checked arguments of `sample` and `stream`."""
        ids = self.vocabulary.encode_part(prime, called("prime"), 0)
        weight_dtype = self._checked_weight_dtype(weight_dtype)
        return Request(
            prime=ids,
            read=ids if ids.size else np.array([self._first], np.int32),
            length=integer("length", length, 0),
            sampling=Sampling(
                temperature, top_k, top_p, weight_dtype, repetition_penalty, repetition_window
            ),
            stops=checked_stops(stop, self.vocabulary),
        )

    @property
    def _first(self) -> int:
        """The id that the network reads before an empty prime: a newline's."""
        return max(self.vocabulary.id_of(ord("\n")), 0)


def _symbols(tensors: checkpoint.Tensors) -> NDArray[Any]:
    symbols = tensors.get("vocabulary")
    if symbols is None:
        raise ValueError("the tensor 'vocabulary' is missing")
    if symbols.dtype != np.int32 or symbols.ndim != 1:
        raise ValueError(
            f"the tensor 'vocabulary' must be int32 of the shape [V], got {symbols.dtype} of "
            f"{list(symbols.shape)}"
        )
    return symbols


def _check_size(tensors: checkpoint.Tensors, config: dict[str, Any], vocabulary_size: int) -> None:
    """ValueError if a model would be larger than its tensors; allocates nothing."""
    size, layers = config["hidden_size"], config["num_layers"]
    width = config["proj_size"] or size
    # Only the large ones, [G*H, V], [G*H, R] and [V, R]: the others follow from the same sizes.
    least = {"decoder.weight": vocabulary_size * width, "rnn.weight_ih_l0": size * vocabulary_size}
    for layer in range(layers):
        least[f"rnn.weight_hh_l{layer}"] = size * width
    for name, elements in least.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ValueError(f"the tensor {name!r} is missing")
        if tensor.size < elements:
            raise ValueError(
                f"the tensor {name!r} has {tensor.size} elements, too few for model.hidden_size "
                f"{size}, model.proj_size {config['proj_size']} and {vocabulary_size} symbols"
            )


def tensor_name(parameter: str) -> str:
    """The name of a parameter in a checkpoint."""
    return parameter if parameter.startswith("decoder.") else f"rnn.{parameter}"


def trained_name(tensor: str) -> str:
    """The tensor of a parameter that trains, where the model's own is an average."""
    return f"trained.{tensor}"


def average_name(tensor: str) -> str:
    """The tensor of a parameter's average, in float64."""
    return f"average.{tensor}"


def _checked_seed(seed: int, name: str = "seed") -> int:
    return integer(name, seed, 0, LARGEST_SEED)
