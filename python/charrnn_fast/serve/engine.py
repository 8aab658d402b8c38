"""The thread that draws: all clients' texts in one batch, in blocks of steps.

Streams join and leave the batch between blocks. The kernels release the GIL, so the event loop goes
on meanwhile. Methods of `Engine` may be called from any thread; what is drawn is delivered by calls
from the engine's own.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..language.batch import Batch, Drawn, Ids, Stream, Symbol
from ..language.model import CharLM
from ..language.sampler import DrawnText, Request, kernel_weights

_BLOCK_SECONDS = 0.03  # of drawing; new streams wait for so long at most
# Between two deliveries of streams, for each text that is streamed; and the most. Their events take
# the processor from the kernels: 64 texts at every block would halve the characters per second.
_SECONDS_PER_STREAM = 0.002
_MOST_SECONDS = 0.1
_MOST_STEPS = 256  # of a block
_PRIME_STEPS = 64  # of the primes of all streams that join, read between two blocks
_TOLD_STEPS = 32  # of a block with probabilities, which are computed stream by stream


class FullError(Exception):
    """As many requests wait as may."""


class EndedError(Exception):
    """The server is shutting down."""


@dataclass(frozen=True)
class Piece:
    """Text of one stream of a job, and the `Symbol` of each drawn character if asked for.

    Of a vocabulary of bytes the symbols are those of a block, whatever characters they complete.
    """

    index: int
    text: str
    symbols: list[Symbol]


@dataclass(frozen=True)
class Ended:
    """The end of one stream: by "length" or by "stop"."""

    index: int
    reason: str


@dataclass(frozen=True)
class Failed:
    """The end of a job whose texts could not be drawn."""

    error: Exception


@dataclass(frozen=True)
class Scores:
    """The end of a job that scores."""

    nats: list[float]


Event = Piece | Ended | Failed | Scores
Deliver = Callable[[list[tuple["Job | Scoring", list[Event]]]], None]


class _Text:
    """One stream of a job with its text."""

    def __init__(self, job: Job, index: int, stream: Stream, text: DrawnText) -> None:
        self.job, self.index, self.stream, self.text = job, index, stream, text
        self.ids: list[Ids] = []  # that are not decoded yet: all at once takes less time
        self.symbols: list[Symbol] = []  # whose text is not told yet
        self.weights = kernel_weights(stream.request.sampling)  # the batch that draws it


@dataclass(eq=False)
class Job:
    """A request's texts, one for each seed.

    streamed: events come block by block; else all of them at the end. alternatives: as in `Stream`.
    """

    request: Request
    seeds: Sequence[int]
    streamed: bool = False
    alternatives: int = 0
    left_out: int = 0
    """Unknown characters of the prime."""
    held: list[Event] = field(default_factory=list)
    """What has happened, if it is not streamed."""
    left: int = 0
    """Texts that have not ended."""


@dataclass(eq=False)
class Scoring:
    """A request for log-probabilities. blocks: yields after each block of work, returns them."""

    blocks: Generator[None, None, NDArray[np.float64]]


class Engine:
    """Draws at most `most_streams` texts at once; at most `most_waiting` requests wait.

    deliver is called with the events of a block; it must return at once. failed is called if the
    thread ends by a mistake of ours, once all jobs are told.
    """

    def __init__(
        self,
        model: CharLM,
        most_streams: int,
        most_waiting: int,
        deliver: Deliver,
        failed: Callable[[], None],
    ) -> None:
        self._model = model
        self._most_waiting = most_waiting
        self._deliver = deliver
        self._failed = failed
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._free = most_streams
        self._queue: deque[tuple[Job, deque[_Text]]] = deque()  # whose texts have no place yet
        self._starting: list[_Text] = []  # with a place, but in no batch yet
        self._gone: set[Job] = set()  # cancelled with texts in a batch
        self._scorings: deque[Scoring] = deque()
        self._ending = self._aborting = False
        # The thread's own:
        self._texts: dict[Stream, _Text] = {}
        self._batches: dict[str, Batch] = {}  # by the kernels' name of the weights
        self._seconds: dict[str, float] = {}  # for one step of each batch
        self._out: dict[Job | Scoring, list[Event]] = {}
        self._has_ended = False  # whether a job of _out has
        self._last_delivery = self._next_score = 0.0
        self._is_due = True  # whether streams are delivered behind this block
        self._thread = threading.Thread(target=self._run, name="charrnn-draws", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Begins a job. FullError if it would have to wait and may not; EndedError at the end."""
        texts = deque(
            _Text(
                job,
                index,
                Stream(job.request, seed, job.alternatives),
                DrawnText(self._model.vocabulary, job.request.stops),
            )
            for index, seed in enumerate(job.seeds)
        )
        job.left = len(texts)
        with self._changed:
            self._check_open()
            must_wait = bool(self._queue) or self._free < len(texts)
            if must_wait and len(self._queue) >= self._most_waiting:
                raise FullError
            self._queue.append((job, texts))
            self._give_places()
            self._changed.notify()

    def score(self, scoring: Scoring) -> None:
        """Computes log-probabilities in turns with the drawing; errors as of `submit`."""
        with self._changed:
            self._check_open()
            if len(self._scorings) >= max(1, self._most_waiting):
                raise FullError
            self._scorings.append(scoring)
            self._changed.notify()

    def cancel_scoring(self, scoring: Scoring) -> None:
        """Drops what is left of it."""
        with self._changed:
            if scoring in self._scorings:
                self._scorings.remove(scoring)

    def cancel(self, job: Job) -> None:
        """Drops what is left of a job; no more events come of blocks that begin after this."""
        with self._changed:
            self._queue = deque(entry for entry in self._queue if entry[0] is not job)
            kept = [text for text in self._starting if text.job is not job]
            self._free += len(self._starting) - len(kept)
            self._starting = kept
            self._gone.add(job)
            self._give_places()
            self._changed.notify()

    def load(self) -> tuple[int, int]:
        """Texts that are drawn now, and requests that wait."""
        with self._changed:
            return len(self._texts) + len(self._starting), len(self._queue) + len(self._scorings)

    @property
    def is_open(self) -> bool:
        """Whether it takes jobs."""
        return not self._ending

    def close(self) -> None:
        """Takes no more jobs; the thread ends with those that there are."""
        with self._changed:
            self._ending = True
            self._changed.notify()

    def abort(self) -> None:
        """As `close`, but the jobs that there are fail with an EndedError at the next block."""
        with self._changed:
            self._ending = self._aborting = True
            self._changed.notify()

    def join(self) -> None:
        """Waits for the thread, after `close` or `abort`."""
        self._thread.join()

    def _check_open(self) -> None:
        if self._ending:
            raise EndedError

    def _give_places(self) -> None:
        while self._free and self._queue:
            texts = self._queue[0][1]
            while self._free and texts:
                self._starting.append(texts.popleft())
                self._free -= 1
            if not texts:
                self._queue.popleft()

    # ---- the thread ----

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException:  # a mistake of ours: nobody may wait for ever
            try:
                with self._changed:
                    self._ending = True
                    self._batches.clear()
                    error = RuntimeError("the server's drawing has failed; its log has more")
                    self._fail_all(error)
                self._flush()
            finally:
                _report()
                self._failed()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._aborting:
                    self._fail_all(EndedError())
                starting, self._starting = self._starting, []
                gone, self._gone = self._gone, set()
                scoring = self._scorings[0] if self._scorings else None
                if self._ending and not (starting or self._texts or scoring or self._queue):
                    self._flush()
                    return
                for text in starting:
                    self._texts[text.stream] = text
            if scoring is not None and (not self._texts or time.perf_counter() >= self._next_score):
                self._score(scoring)
            for job in gone:
                self._drop(job)
            for text in starting:
                if text.stream in self._texts:  # not cancelled meanwhile
                    self._try_to_begin(text)
            self._check_due()
            for weights in list(self._batches):
                self._advance(weights)
            if self._is_due or self._has_ended:
                self._flush()

    def _check_due(self) -> None:
        streamed = sum(text.job.streamed for text in self._texts.values())
        pause = min(_SECONDS_PER_STREAM * streamed, _MOST_SECONDS)
        self._is_due = time.perf_counter() - self._last_delivery >= pause

    def _has_work(self) -> bool:
        return bool(self._starting or self._texts or self._gone or self._scorings or self._ending)

    def _try_to_begin(self, text: _Text) -> None:
        try:
            self._begin(text)
        except Exception as error:  # no memory: told to its client, and here
            _report()
            self._fail([text], error)

    def _begin(self, text: _Text) -> None:
        request = text.stream.request
        self._tell(text, text.text.begin(request.prime))
        if not request.length:
            self._end(text)
            return
        weights = text.weights
        if weights not in self._batches:
            self._batches[weights] = Batch(self._model, weights or None)
            self._seconds[weights] = _BLOCK_SECONDS / 8  # a guess; measured from now on
        self._batches[weights].join(text.stream)

    def _advance(self, weights: str) -> None:
        """Reads and draws a block of one batch."""
        batch = self._batches[weights]
        if not len(batch):
            return
        try:
            batch.read(_PRIME_STEPS)
            steps = int(_BLOCK_SECONDS / self._seconds[weights])
            if any(stream.alternatives for stream in batch.streams):
                steps = min(steps, _TOLD_STEPS)
            begin = time.perf_counter()
            drawn = batch.draw(max(1, min(steps, _MOST_STEPS)))
            seconds = time.perf_counter() - begin
        except Exception as error:  # damaged weights, no memory: told to each client, and here
            _report()
            del self._batches[weights]
            # Not batch.streams: what has failed on its way into the batch is not among them.
            self._fail([text for text in self._texts.values() if text.weights == weights], error)
            return
        if drawn:
            self._seconds[weights] = max(seconds / len(drawn[0].ids), 1e-6)
        for part in drawn:
            self._extend(batch, part)

    def _extend(self, batch: Batch, drawn: Drawn) -> None:
        text = self._texts[drawn.stream]
        text.ids.append(drawn.ids)
        text.symbols += drawn.symbols
        is_told = text.job.streamed and self._is_due
        if drawn.stream.remaining and not is_told and not drawn.stream.request.stops:
            return
        ids = np.concatenate(text.ids)
        text.ids.clear()
        self._tell(text, text.text.extend(ids))
        if text.text.ended:
            batch.leave(drawn.stream)
        if text.text.ended or not drawn.stream.remaining:
            self._end(text)

    def _tell(self, text: _Text, piece: str) -> None:
        """Emits a piece and its symbols; a character's symbol waits for its text."""
        is_plain = self._model.vocabulary.kind == "characters"
        count = len(piece) if is_plain else len(text.symbols)
        symbols, text.symbols = text.symbols[:count], text.symbols[count:]
        if piece or symbols:
            self._emit(text.job, Piece(text.index, piece, symbols))

    def _end(self, text: _Text) -> None:
        self._tell(text, text.text.finish())
        reason = "stop" if text.text.ended else "length"
        text.job.left -= 1
        self._has_ended |= not text.job.left
        self._emit(text.job, Ended(text.index, reason))
        self._release([text])

    def _emit(self, job: Job, event: Event) -> None:
        if job.streamed:
            self._out.setdefault(job, []).append(event)
            return
        job.held.append(event)
        if not job.left:
            self._out[job] = job.held

    def _release(self, texts: Sequence[_Text]) -> None:
        with self._changed:
            for text in texts:
                del self._texts[text.stream]
            self._free += len(texts)
            self._give_places()

    def _drop(self, job: Job) -> None:
        texts = [text for text in self._texts.values() if text.job is job]
        for text in texts:
            batch = self._batches.get(text.weights)
            if batch is not None:
                batch.leave(text.stream)
        self._release(texts)
        self._out.pop(job, None)

    def _fail(self, texts: Sequence[_Text], error: Exception) -> None:
        """Ends the jobs of these texts, with all of their texts."""
        jobs = {text.job for text in texts}
        with self._changed:
            self._queue = deque(entry for entry in self._queue if entry[0] not in jobs)
            kept = [text for text in self._starting if text.job not in jobs]
            self._free += len(self._starting) - len(kept)
            self._starting = kept
        for job in jobs:
            self._drop(job)
            self._out[job] = [Failed(error)]
            self._has_ended = True

    def _fail_all(self, error: Exception) -> None:
        """Under the lock, which the thread may take again."""
        for text in self._starting:
            self._texts[text.stream] = text
        waiting: list[Job | Scoring] = [*(job for job, _ in self._queue), *self._scorings]
        self._starting = []
        self._queue.clear()
        self._scorings.clear()
        self._fail(list(self._texts.values()), error)
        for job in waiting:
            self._out[job] = [Failed(error)]
            self._has_ended = True

    def _score(self, scoring: Scoring) -> None:
        """Computes a block. Drawing then has as much time before the next."""
        begin = time.perf_counter()
        try:
            next(scoring.blocks)
            end = time.perf_counter()
            self._next_score = 2 * end - begin
            return
        except StopIteration as last:
            self._out[scoring] = [Scores(last.value.tolist())]
        except Exception as error:  # told to the client, and here
            _report()
            self._out[scoring] = [Failed(error)]
        self._has_ended = True
        self.cancel_scoring(scoring)

    def _flush(self) -> None:
        self._has_ended = False
        self._last_delivery = time.perf_counter()
        if self._out:
            out, self._out = self._out, {}
            self._deliver(list(out.items()))


def _report() -> None:
    """Prints the exception that is handled; where nobody reads stderr any more, nothing."""
    with contextlib.suppress(OSError, ValueError):
        traceback.print_exc(file=sys.stderr)
