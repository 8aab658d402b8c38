"""``charrnn-fast sample``: text from a trained model."""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence

from .._checks import LARGEST_SEED, brief, called
from ..language.beam import find_likeliest
from ..language.model import CharLM
from ..language.sampler import (
    BLOCK,
    LARGEST_WINDOW,
    REPETITION_WINDOW,
    Request,
    draw_pieces,
    draw_texts,
)
from ..language.small_weights import SMALL_DTYPES
from ..storage.input_files import decoded, read_whole, shown
from ..text.vocabulary import Vocabulary
from ..training.progress import bar
from . import choices
from .columns import side_by_side
from .dynamic import add_dynamic, check_dynamic, learning_of
from .parsing import (
    INTERRUPTED,
    Commands,
    Parser,
    add_device,
    add_threads,
    file_option,
    integer_option,
    number_option,
    numbers_option,
    stop_option,
    text_option,
)

_LONGEST_PRIME = 100_000_000  # bytes


def add(commands: Commands) -> None:
    sample = commands.add(
        "sample", run, "Write text with a trained model, and a newline at its end."
    )
    sample.add_argument("model", type=file_option, metavar="MODEL", help="saved by train")
    sample.add_argument(
        "--length",
        type=integer_option(0),
        default=500,
        metavar="N",
        help="characters to write (default: 500)",
    )
    prime = sample.add_mutually_exclusive_group()
    prime.add_argument(
        "--prime",
        type=_prime_option,
        default="",
        metavar="TEXT",
        help=r"beginning of the text; escapes: \n, \t, \xNN, \uNNNN, \\ for a backslash",
    )
    prime.add_argument(
        "--prime-file",
        type=file_option,
        metavar="FILE",
        help="UTF-8 file with the prime; - for standard input",
    )
    _add_drawing(sample)
    sample.add_argument(
        "--allow-unknown",
        action="store_true",
        help="leave out and count characters of the prime that the vocabulary lacks",
    )
    sample.add_argument(
        "--stop",
        type=stop_option,
        action="append",
        metavar="TEXT",
        help=r"stop before TEXT (escapes as in --prime); may be repeated",
    )
    sample.add_argument(
        "--seed",
        type=integer_option(0, LARGEST_SEED),
        metavar="N",
        help="seed (default: a random one, shown on stderr)",
    )
    sample.add_argument(
        "--num-samples",
        type=integer_option(1),
        default=1,
        metavar="COUNT",
        help="number of texts, with seeds N, N + 1, ... from --seed N (default: 1)",
    )
    sample.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="write each character as it is drawn (default: for one text on a terminal)",
    )
    sample.add_argument(
        "--json",
        action="store_true",
        help='print JSON: a line {"seed": ..., "text": ...} for each text',
    )
    sample.add_argument(
        "--beam",
        type=integer_option(1, 10_000),
        metavar="N",
        help="the likeliest text that beam search with N beginnings finds; nothing is drawn",
    )
    sample.add_argument(
        "--choices",
        action="store_true",
        help="show what may come next, and take each character as you choose",
    )
    add_dynamic(sample, "the prime")
    add_weight_dtype(sample)
    add_device(sample)
    add_threads(sample)


def _add_drawing(parser: Parser) -> None:
    """The options of how a character is drawn."""
    temperature = parser.add_mutually_exclusive_group()
    temperature.add_argument(
        "--temperature",
        type=number_option(least=0),
        default=1.0,
        metavar="T",
        help="below 1: safer; above 1: wilder; 0: always the most probable (default: 1)",
    )
    temperature.add_argument(
        "--temperatures",
        type=numbers_option(least=0),
        metavar="T,T,...",
        help="one text for each temperature, side by side",
    )
    parser.add_argument(
        "--top-k",
        type=integer_option(1),
        metavar="K",
        help="sample from the K most probable characters",
    )
    parser.add_argument(
        "--top-p",
        type=number_option(above=0, most=1),
        metavar="P",
        help="nucleus sampling: from the most probable characters with P together",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=number_option(least=1),
        default=1.0,
        metavar="P",
        help="divide the logits of the last characters by P, 1 or more (default: 1)",
    )
    parser.add_argument(
        "--repetition-window",
        type=integer_option(1, LARGEST_WINDOW),
        metavar="N",
        help=f"how many characters have the penalty (default: {REPETITION_WINDOW})",
    )


def _prime_option(text: str) -> str:
    return text_option(text, "--prime-file reads others")


_prime_option.__name__ = "text"


def add_weight_dtype(
    parser: Parser, words: str = "bfloat16: half the memory per weight; int8: a quarter"
) -> None:
    parser.add_argument(
        "--weight-dtype",
        choices=["float32", "float64", *SMALL_DTYPES],
        help=f"{words} (default: the model's)",
    )


def run(arguments: argparse.Namespace) -> int:
    seeds = _seeds(arguments)
    _check_alone(arguments)
    check_dynamic(arguments)
    if arguments.stream and (arguments.json or arguments.temperatures):
        other = "--json" if arguments.json else "--temperatures"
        raise ValueError(f"--stream writes characters, {other} whole texts: leave out one of them")
    model = CharLM.load(
        arguments.model, device=arguments.device, compute_dtype=arguments.compute_dtype
    )
    requests = _requests(arguments, model)
    if arguments.dynamic is not None and len(requests[0].prime) < 2:
        raise ValueError(
            f"--dynamic must have a --prime of 2 {model.vocabulary.unit}s or more to learn from, "
            f"got {len(requests[0].prime)}"
        )
    learning = learning_of(arguments, model, allow_unknown=arguments.allow_unknown)
    if learning is not None:
        model, adapting = learning()
        model.evaluate_ids(requests[0].prime, None, adapting)
    if arguments.beam is not None:
        _write_likeliest(model, requests[0], arguments.beam, arguments.json)
        return 0
    if arguments.seed is None and len(seeds) == 1 and not arguments.json:
        print(f"seed {seeds[0]}", file=sys.stderr)
    if arguments.choices:
        text, cut = choices.choose(model, requests[0], seeds[0])
        print(text, flush=True)
        return INTERRUPTED if cut else 0
    if arguments.json:
        _write_json(model, requests, seeds, arguments.temperatures)
    elif arguments.temperatures:
        _write_columns(model, requests, seeds, arguments.temperatures)
    elif arguments.stream or len(seeds) == 1:
        streamed = sys.stdout.isatty() if arguments.stream is None else arguments.stream
        _write_pieces(model, requests[0], seeds, 1 if streamed else BLOCK)
    else:
        for seed, (text,) in _texts(model, requests, seeds):
            print(f"{_heading(seed, seeds)}{text}", flush=True)
    return 0


def _check_alone(arguments: argparse.Namespace) -> None:
    """ValueError if an option has no part in what the others ask for."""
    drawing = {
        "--temperature": arguments.temperature != 1,
        "--top-k": arguments.top_k is not None,
        "--top-p": arguments.top_p is not None,
        "--repetition-penalty": arguments.repetition_penalty != 1,
        "--repetition-window": arguments.repetition_window is not None,
        "--seed": arguments.seed is not None,
        "--choices": arguments.choices,
    }
    several = {
        "--temperatures": arguments.temperatures is not None,
        "--num-samples": arguments.num_samples != 1,
        "--stream": arguments.stream is not None,
    }
    written = {
        "--json": arguments.json,
        "--stop": arguments.stop is not None,
        "--prime-file -": arguments.prime_file == "-",
    }
    if arguments.beam is not None:
        mode, others = "--beam searches the likeliest text", {**drawing, **several}
    elif arguments.choices:
        mode, others = "--choices asks for each character of one text", {**several, **written}
    else:
        mode, others = "", {}
    if wrong := [flag for flag, given in others.items() if given]:
        raise ValueError(f"{mode} and does not take {', '.join(wrong)}: leave out one of them")
    if arguments.repetition_window is not None and arguments.repetition_penalty == 1:
        raise ValueError("--repetition-window needs a --repetition-penalty above 1")


def _write_likeliest(model: CharLM, request: Request, beam: int, as_json: bool) -> None:
    text, nats = find_likeliest(model.rnn, model.vocabulary, request, beam)
    if as_json:
        print(json.dumps({"log_probability": nats, "text": text}), flush=True)
        return
    print(f"log-probability {brief(nats, 4)} nats", file=sys.stderr)
    print(text, flush=True)


def _seeds(arguments: argparse.Namespace) -> range:
    count: int = arguments.num_samples
    first: int | None = arguments.seed
    if first is None:
        first = secrets.randbelow(LARGEST_SEED + 2 - count)
    elif first + count - 1 > LARGEST_SEED:
        raise ValueError(
            f"--seed must be at most {LARGEST_SEED + 1 - count} with --num-samples {count}, got "
            f"{first}"
        )
    return range(first, first + count)


def _requests(arguments: argparse.Namespace, model: CharLM) -> list[Request]:
    """One for each temperature."""
    prime: str | bytes = arguments.prime
    name = "prime"
    if arguments.prime_file is not None:
        name = shown(arguments.prime_file)
        prime = _read_prime(arguments.prime_file, model.vocabulary)
    if arguments.allow_unknown:
        prime = model.known(name, prime)
    model.vocabulary.encode_part(prime, called(name), 0)  # whose message names a file
    return [
        model.request(
            arguments.length,
            prime,
            temperature,
            arguments.top_k,
            arguments.top_p,
            arguments.stop,
            arguments.weight_dtype,
            arguments.repetition_penalty,
            arguments.repetition_window or REPETITION_WINDOW,
        )
        for temperature in arguments.temperatures or [arguments.temperature]
    ]


def _read_prime(path: str, vocabulary: Vocabulary) -> str | bytes:
    """The whole file; any bytes with a byte vocabulary."""
    data = read_whole(path, _LONGEST_PRIME, "a prime")
    if vocabulary.kind == "bytes":
        return data
    return decoded(data, shown(path))


def _texts(
    model: CharLM, requests: Sequence[Request], seeds: Sequence[int]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Each seed with its texts, one for each request; of many with a bar where a person looks."""
    unit = model.vocabulary.unit[:4]
    total = sum(request.length for request in requests) * len(seeds)
    shown = bar(total=total, unit=unit, unit_scale=True) if len(seeds) > 1 else None
    done = (lambda tokens: None) if shown is None else shown.update
    texts = [draw_texts(model.rnn, model.vocabulary, request, seeds, done) for request in requests]
    try:
        for seed, together in zip(seeds, zip(*texts, strict=True), strict=True):
            if shown is not None:
                shown.clear()  # the text may go to the same terminal
            yield seed, together
    finally:
        if shown is not None:
            shown.close()


def _write_pieces(model: CharLM, request: Request, seeds: Sequence[int], block: int) -> None:
    for seed in seeds:
        print(_heading(seed, seeds), end="", flush=True)
        for piece in draw_pieces(model.rnn, model.vocabulary, request, seed, block):
            print(piece, end="", flush=True)
        print(flush=True)


def _write_json(
    model: CharLM,
    requests: Sequence[Request],
    seeds: Sequence[int],
    temperatures: Sequence[float] | None,
) -> None:
    labels = [{"temperature": t} for t in temperatures] if temperatures else [{}]
    for seed, texts in _texts(model, requests, seeds):
        for label, text in zip(labels, texts, strict=True):
            print(json.dumps({**label, "seed": seed, "text": text}), flush=True)


def _write_columns(
    model: CharLM, requests: Sequence[Request], seeds: Sequence[int], temperatures: Sequence[float]
) -> None:
    titles = [f"temperature {t:g}" for t in temperatures]
    width = shutil.get_terminal_size().columns
    for seed, texts in _texts(model, requests, seeds):
        print(_heading(seed, seeds), end="")
        for line in side_by_side(titles, texts, width):
            print(line)
        sys.stdout.flush()


def _heading(seed: int, seeds: Sequence[int]) -> str:
    """A heading that tells several texts apart, like those of head and tail."""
    if len(seeds) == 1:
        return ""
    gap = "" if seed == seeds[0] else "\n"
    return f"{gap}==> seed {seed} <==\n"
