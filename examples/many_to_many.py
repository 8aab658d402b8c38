"""Many to many: dates as people write them, translated to ISO 8601 by two networks.

    _, state = encoder.forward(source, lengths=lengths)   # h and c [D = 2, B, H] at both ends
    y, _ = decoder.forward(target, state)                 # are those of its layers, [L = 2, B, H]
    _, dstate, _ = decoder.backward(dy)
    encoder.backward(None, dstate)                        # nothing reads the encoder's outputs

This is the article's "many to many", machine translation (Sutskever et al., 2014). The encoder
reads the source to its end; its last state is all that the decoder knows of it. In training the
decoder reads the true characters (teacher forcing). Afterwards it reads its own: the most probable
one at each step (greedy), or those of the most probable whole among the best few (beam search).

"Tuesday, 3rd of March 1987" is 1987-03-03. Points put the day first, slashes the month first, and
two digits are a year of 1950 to 2049, so every form has one meaning. A tenth of the dates is for
testing. The score is the share of test dates that are right to the last character. The baseline
reads the numbers in order, without knowing any words.

    python examples/many_to_many.py [--plot PICTURE]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import date, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import charrnn_fast as cf

Array = NDArray[Any]

FIRST, DAYS = date(1950, 1, 1), 36525  # to the end of 2049
HIDDEN_SIZE, WIDTH = 64, 4  # units of each layer and direction, beams
FORGET_BIAS = 2.0  # the day is written eight steps or more after it has been read
BATCH, UPDATES, LEARNING_RATE, CLIP_NORM = 32, 1500, 1e-2, 1.0
TESTS, EVERY = 1000, 100  # test dates, and the updates between two points of the curve
BOUND = 0.95  # the least share of exact dates
END = "\n"  # opens and ends a translation

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)
ONES = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"),
    *("tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth"),
    *("seventeenth", "eighteenth", "nineteenth"),
)
ORDINALS = (
    *ONES,
    "twentieth",
    *(f"twenty-{one}" for one in ONES[:9]),
    *("thirtieth", "thirty-first"),
)
FORMS = (
    "{weekday}, {day}{suffix} of {month} {year}",
    "{weekday:.3}, {day} {month:.3} {year}",
    "{weekday}, the {ordinal} of {month}, {year}",
    "the {ordinal} of {month}, {year}",
    "{month} the {ordinal}, '{short}",
    "{month} {day}, {year}",
    "{month:.3} {day} '{short}",
    "{day}{suffix} {month} {year}",
    "{day}. {number}. {year}",
    "{day}.{number}.{short}",
    "{number}/{day}/{short}",
    "{number}/{day}/{year}",
)


class Figures(NamedTuple):
    greedy: float  # share of the test dates that are right to the last character
    beam: float  # the same for beam search
    baseline: float  # the same for `by_numbers`
    losses: list[float]  # nats per character at each update
    curve: list[tuple[int, float, float]]  # updates, greedy and beam after so many


def written(day: date, form: str) -> str:
    n = day.day
    suffix = "th" if 10 < n < 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return form.format(
        weekday=WEEKDAYS[day.weekday()],
        day=n,
        suffix=suffix,
        ordinal=ORDINALS[n - 1],
        month=MONTHS[day.month - 1],
        number=day.month,
        year=day.year,
        short=f"{day.year % 100:02}",
    )


def by_numbers(text: str) -> str:
    """The numbers as month, day and year, in this order; what is missing is 1."""
    *others, year = map(int, re.findall(r"\d+", text))
    if year < 100:
        year += 1900 if year >= 50 else 2000
    month, day = [1, 1, *others][-2:]
    return f"{year:04}-{month:02}-{day:02}"


def encode(vocabulary: cf.Vocabulary, texts: Sequence[str]) -> tuple[Array, Array]:
    """Tokens [T, B] of the texts, padded by ENDs, and their lengths [B]."""
    longest = max(map(len, texts))
    rows = [vocabulary.encode(text.ljust(longest, END)) for text in texts]
    return np.stack(rows, axis=1), np.array([len(text) for text in texts])


def log_softmax(logits: Array) -> Array:
    shifted: Array = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_probabilities


class Translator:
    """The last state of each encoder direction is the first state of one decoder layer."""

    def __init__(self, source: cf.Vocabulary, target: cf.Vocabulary) -> None:
        self.source, self.target = source, target
        size = len(target)
        lstm: dict[str, Any] = {"cell": "lstm", "forget_bias": FORGET_BIAS}
        self.encoder = cf.RNN(len(source), HIDDEN_SIZE, **lstm, bidirectional=True, seed=1)
        self.decoder = cf.RNN(size, HIDDEN_SIZE, size, **lstm, num_layers=2, seed=2)
        self.optimizers = [cf.optim.Adam(rnn) for rnn in (self.encoder, self.decoder)]

    def update(self, texts: Sequence[str], truths: Sequence[str], learning_rate: float) -> float:
        """One update of both networks by teacher forcing; returns nats per character."""
        x, lengths = encode(self.source, texts)
        tokens, _ = encode(self.target, [END + truth + END for truth in truths])
        _, state = self.encoder.forward(x, lengths=lengths)
        y, _ = self.decoder.forward(tokens[:-1], state)
        loss, dy = cf.cross_entropy(y, tokens[1:])
        _, dstate, decoder_grads = self.decoder.backward(dy)
        _, _, encoder_grads = self.encoder.backward(None, dstate)
        for optimizer, grads in zip(self.optimizers, (encoder_grads, decoder_grads), strict=True):
            cf.clip_grad_norm(grads, CLIP_NORM)
            optimizer.lr = learning_rate
            optimizer.step(grads)
        return loss

    def translate(self, texts: Sequence[str], width: int = 1, longest: int = 11) -> list[str]:
        """The best of `width` translations of each text by beam search; greedy with 1.

        All beams of all texts, [B, K], are the rows of one batch, in the decoder's state too.
        """
        x, lengths = encode(self.source, texts)
        B, K, V = len(texts), width, len(self.target)
        end = int(self.target.encode(END)[0])
        _, state = self.encoder.forward(x, lengths=lengths, keep=False)
        state = tuple(np.repeat(part, K, axis=1) for part in state)  # [L, B * K, H] each
        scores = np.full((B, K), -np.inf)  # log-probabilities; at first all beams are one
        scores[:, 0] = 0
        rows = np.full((1, B, K), end)
        finished = np.zeros((B, K), bool)
        after_end = np.where(np.arange(V) == end, 0, -np.inf)  # an END, and at no cost
        for _ in range(longest):
            y, state = self.decoder.forward(rows[-1].reshape(1, -1), state, keep=False)
            steps = np.where(finished[..., np.newaxis], after_end, log_softmax(y).reshape(B, K, V))
            extended = (scores[..., np.newaxis] + steps).reshape(B, K * V)
            best = np.argsort(-extended, axis=1, kind="stable")[:, :K]
            scores = np.take_along_axis(extended, best, axis=1)
            beams, tokens = np.divmod(best, V)
            rows = np.take_along_axis(rows, beams[np.newaxis], axis=2)
            rows = np.concatenate([rows, tokens[np.newaxis]])
            finished = tokens == end
            chosen = (np.arange(B)[:, np.newaxis] * K + beams).reshape(-1)
            state = tuple(part.take(chosen, axis=1) for part in state)
        return [self.target.decode(row).partition(END)[0] for row in rows[1:, :, 0].T]


def share(translations: Sequence[str], truths: Sequence[str]) -> float:
    """The share of the translations that are right to the last character."""
    return sum(map(str.__eq__, translations, truths)) / len(truths)


def draw(figures: Figures, examples: Sequence[tuple[str, str]], path: Path) -> None:
    """The learning curve and some translations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    curve, table = figure.subplots(1, 2)
    updates, greedy, beam = np.transpose(figures.curve)
    curve.plot(updates, 100 * beam, marker="o", label=f"{WIDTH} beams")
    curve.plot(updates, 100 * greedy, marker=".", label="greedy")
    curve.axhline(100 * figures.baseline, color="gray", linestyle=":", label="numbers in order")
    curve.set_xlabel(f"update (of {BATCH} dates)")
    curve.set_ylabel("held-out dates that are right (%)")
    curve.legend()
    table.axis("off")
    for i, (text, translation) in enumerate(examples):
        y = 1 - (i + 0.5) / len(examples)
        table.text(0, y, text)
        table.text(0.78, y, translation, family="monospace")
    figure.savefig(path, dpi=150)


def main(plot: Path | None = None, updates: int = UPDATES) -> Figures:
    rng = np.random.default_rng(0)
    days = [FIRST + timedelta(int(n)) for n in rng.permutation(DAYS)]
    train, test = days[: DAYS * 9 // 10], days[DAYS * 9 // 10 :][:TESTS]
    truths = [day.isoformat() for day in test]
    texts = [written(day, FORMS[i % len(FORMS)]) for i, day in enumerate(test)]
    every_character = "".join(written(day, form) for day in train[:1000] for form in FORMS)
    translator = Translator(
        cf.Vocabulary.from_text(every_character + END),
        cf.Vocabulary.from_text("0123456789-" + END),
    )

    losses: list[float] = []
    curve: list[tuple[int, float, float]] = []
    for update in range(updates):
        batch = [train[i] for i in rng.integers(0, len(train), BATCH)]
        forms = rng.integers(0, len(FORMS), BATCH)
        losses.append(
            translator.update(
                [written(day, FORMS[form]) for day, form in zip(batch, forms, strict=True)],
                [day.isoformat() for day in batch],
                LEARNING_RATE * (1 - update / updates),
            )
        )
        if (update + 1) % EVERY == 0 or update + 1 == updates:
            translations = translator.translate(texts, WIDTH)
            greedy = share(translator.translate(texts), truths)
            curve.append((update + 1, greedy, share(translations, truths)))
            print(
                f"update {update + 1:4}: {np.mean(losses[-EVERY:]):.4f} nats per character; of the "
                "dates held out {:.1%} greedy, {:.1%} by beam search".format(*curve[-1][1:])
            )

    _, greedy, beam = curve[-1]
    baseline = share([by_numbers(text) for text in texts], truths)
    figures = Figures(greedy, beam, baseline, losses, curve)
    examples = list(zip(texts, translations, strict=True))[: len(FORMS)]
    for text, translation in examples:
        print(f"{text:40} {translation}")
    print(f"greedy {figures.greedy:.1%}, {WIDTH} beams {figures.beam:.1%}")
    print(f"numbers in their order {figures.baseline:.1%}")
    if plot is not None:
        draw(figures, examples, plot)
        print(f"the learning curve: {plot}")
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Dates translated to ISO 8601")
    parser.add_argument("--plot", type=Path, metavar="PICTURE", help="takes matplotlib")
    given = parser.parse_args()
    if given.plot and find_spec("matplotlib") is None:
        parser.error("--plot takes matplotlib: pip install 'charrnn_fast[plot]'")
    if given.plot and not given.plot.parent.is_dir():
        parser.error(f"--plot: there is no folder {given.plot.parent}")
    figures = main(given.plot)
    worst = min(figures.greedy, figures.beam)
    if worst < BOUND:
        sys.exit(f"failed: {worst:.1%} of the dates are right, it takes {BOUND:.0%}")
