"""The search for settings: its bounds, its trials, its files, and that it resumes exactly."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from charrnn_fast import Corpus
from charrnn_fast.cli import main, tune
from charrnn_fast.training import log
from charrnn_fast.tune import report, search, space
from charrnn_fast.tune.search import (
    DIVERGED,
    FINISHED,
    GUESSING,
    HOPELESS,
    TOO_LARGE,
    UNFINISHED,
    Tried,
)
from charrnn_fast.tune.space import Space, Speed, Text
from test_cli import refused

TEXT = "the quick brown fox jumps over the lazy dog\n" * 30  # 1,320 characters, 1,188 to train
SMALL = ["--batch-size", "6", "--seq-len", "20", "--hidden-size", "6", "--num-layers", "1"]

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


MEASURED = tune._Trials.speed


@pytest.fixture(autouse=True)
def steady(monkeypatch: Patch, tmp_path: Path) -> None:
    """The speed of one machine, and a text in the current folder."""
    speed = Speed(2e6, 2e6)
    monkeypatch.setattr(tune._Trials, "speed", lambda self: speed)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # most of a small trial's time
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(TEXT)


def tuned(*arguments: str, text: str = "a.txt", output: str = "won.toml") -> int:
    return main(["tune", text, "-o", output, "--threads", "1", *SMALL, *arguments])


def tried(path: str = "won.study") -> list[Tried]:
    return search.Study(path).tried


def results(path: str = "won.study") -> list[Tried]:
    """What does not depend on the clock."""
    return [one._replace(seconds=0) for one in tried(path)]


def best_of(model: str) -> float:
    """The lowest validation loss of the log of a model."""
    entries = log.read(model.replace(".safetensors", ".jsonl"))
    return float(min(e["validation_loss"] for e in entries if e["type"] == "evaluation"))


@pytest.fixture
def no_picture(monkeypatch: Patch) -> None:
    monkeypatch.setattr(report, "picture", lambda *arguments: None)


# ---- the command ----


def test_the_settings_that_won_train_to_the_loss_of_their_trial(capsys: Capture) -> None:
    assert tuned("--budget", "10m", "--trials", "4", "--split", "0.7,0.2,0.1") == 0
    printed = capsys.readouterr().out
    done = tried()
    best = search.winner(done)
    assert best is not None
    assert len(done) == 4
    assert best.best[0] == min(one.best[0] for one in done if one.ended == FINISHED)
    settings = tomllib.loads(Path("won.toml").read_text())
    assert settings["text"] == ["a.txt"]
    assert settings["split"] == [0.7, 0.2, 0.1]
    assert settings["hidden_size"] == 6
    assert f"trial {best.number}, 1x6" in printed
    assert "next: charrnn-fast train --config won.toml" in printed
    assert main(["train", "--config", "won.toml", "-o", "m.safetensors", "--threads", "1"]) == 0
    assert best_of("m.safetensors") == best.best[0]


def test_the_table_and_the_picture_have_each_trial(capsys: Capture) -> None:
    assert tuned("--budget", "10m", "--trials", "3", "--epochs", "2") == 0
    lines = Path("won.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ") and line[2].isdigit()]
    by_loss = sorted(tried(), key=lambda one: one.best[0])
    assert [int(row[0][2:]) for row in rows] == [one.number for one in by_loss]
    assert [row[6] for row in rows] == [f"{one.best[0]:.4f}" for one in by_loss]
    assert rows[0][-1] == "the best |"
    assert Path("won.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()


@pytest.mark.usefixtures("no_picture")
def test_the_test_part_changes_nothing() -> None:
    for number, content in enumerate((TEXT[:200], TEXT[200:900])):
        Path(f"test{number}.txt").write_text(content)
        given = ["--budget", "10m", "--trials", "3", "--test", f"test{number}.txt"]
        given += ["--epochs", "2"]
        assert tuned(*given, output=f"{number}.toml") == 0
    assert results("0.study") == results("1.study")


@pytest.mark.usefixtures("no_picture")
def test_a_search_repeats(capsys: Capture) -> None:
    for name in ("a", "b"):
        assert (
            tuned("--budget", "10m", "--trials", "8", "--epochs", "2", output=f"{name}.toml") == 0
        )
    assert results("a.study") == results("b.study")
    assert (
        tuned("--budget", "10m", "--trials", "3", "--seed", "1", "--epochs", "2", output="c.toml")
        == 0
    )
    assert results("c.study") != results("a.study")[:3]
    capsys.readouterr()


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("update", [1, 33, 70])
def test_an_interrupted_search_goes_on_as_if_never_stopped(
    update: int, monkeypatch: Patch, capsys: Capture
) -> None:
    assert tuned("--budget", "10m", "--trials", "6", "--epochs", "2", output="whole.toml") == 0
    count = 0
    updated = search._Watch.updated

    def interrupting(watch: Any, trainer: Any, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == update:
            raise KeyboardInterrupt
        updated(watch, trainer, *arguments)

    monkeypatch.setattr(search._Watch, "updated", interrupting)
    asked = ["--budget", "10m", "--trials", "6", "--epochs", "2"]
    assert tuned(*asked) == 130
    assert tried()[-1].ended == UNFINISHED
    assert Path("won.md").exists()
    assert "--resume goes on" in capsys.readouterr().out
    assert "exists: --resume goes on" in refused(["tune", "a.txt", "-o", "won.toml"], capsys)
    assert tuned(*asked, "--resume") == 0
    assert results() == results("whole.study")
    assert Path("won.toml").read_text() == Path("whole.toml").read_text()
    assert not list(Path().glob("*.safetensors"))


@pytest.mark.usefixtures("no_picture")
def test_a_search_interrupted_while_it_chooses_goes_on(monkeypatch: Patch, capsys: Capture) -> None:
    asked = ["--budget", "10m", "--trials", "4", "--epochs", "2"]
    assert tuned(*asked, output="whole.toml") == 0
    count, settings = 0, Space.settings

    def interrupting(space: Space, draw: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return settings(space, draw)

    monkeypatch.setattr(Space, "settings", interrupting)
    assert tuned(*asked) == 130
    Path("won.study.lock").symlink_to("won.study")  # as a kill leaves it
    assert tuned(*asked, "--resume") == 0
    assert results() == results("whole.study")
    capsys.readouterr()


@pytest.mark.usefixtures("no_picture")
def test_a_study_that_ends_in_half_a_line_is_gone_on_with(capsys: Capture) -> None:
    asked = ["--budget", "10m", "--trials", "3", "--epochs", "2"]
    assert tuned(*asked, output="whole.toml") == 0
    assert tuned("--budget", "10m", "--trials", "1", "--epochs", "2") == 0
    with Path("won.study").open("ab") as study:
        study.write(b'{"op_code":4,"worker')  # as a full disk leaves it
    for _ in range(2):
        assert tuned(*asked, "--resume") == 0
    assert results() == results("whole.study")
    capsys.readouterr()


@pytest.mark.usefixtures("no_picture")
def test_a_study_that_cannot_be_written_is_named(monkeypatch: Patch, capsys: Capture) -> None:
    backend = search.imported().storages.journal.JournalFileBackend
    append, count = backend.append_logs, 0

    def full(self: Any, lines: Any) -> None:
        nonlocal count
        count += 1
        if count == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, lines)

    asked = ["--budget", "10m", "--trials", "2", "--epochs", "2"]
    assert tuned(*asked, output="whole.toml") == 0
    monkeypatch.setattr(backend, "append_logs", full)
    error = refused(["tune", "a.txt", "-o", "won.toml", *SMALL, *asked], capsys)
    assert f"won.study: {os.strerror(errno.ENOSPC)}" in error
    assert tuned(*asked, "--resume") == 0
    assert results() == results("whole.study")
    capsys.readouterr()


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("line", [b'{"op_code": 99}\n', b'{"op_code"}\n{}\n'])
def test_a_damaged_study_is_refused(line: bytes, capsys: Capture) -> None:
    Path("won.study").write_bytes(line)
    error = refused(["tune", "a.txt", "-o", "won.toml", *SMALL, "--resume"], capsys)
    assert "won.study is damaged" in error
    assert "--overwrite begins a new search" in error
    assert Path("won.study").read_bytes() == line
    assert tuned("--budget", "10m", "--trials", "1", "--overwrite") == 0
    capsys.readouterr()


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    ("error", "ended"), [(MemoryError("out"), TOO_LARGE), (FloatingPointError("inf"), DIVERGED)]
)
def test_a_trial_that_fails_ends_alone(
    error: Exception, ended: str, monkeypatch: Patch, capsys: Capture
) -> None:
    updated = search._Watch.updated

    def failing(watch: Any, trainer: Any, *arguments: Any) -> None:
        if watch._trial.number == 1:
            raise error
        updated(watch, trainer, *arguments)

    monkeypatch.setattr(search._Watch, "updated", failing)
    assert tuned("--budget", "10m", "--trials", "3", "--epochs", "2") == 0
    assert [one.ended == ended for one in tried()] == [False, True, False]
    assert ended in Path("won.md").read_text()
    assert not list(Path().glob("*.safetensors"))
    capsys.readouterr()


@pytest.mark.usefixtures("no_picture")
def test_a_hopeless_trial_that_is_killed_before_its_end_stays_hopeless(
    monkeypatch: Patch, capsys: Capture
) -> None:
    """Its checkpoint is written, the study does not have its end."""
    looks: list[list[float]] = []

    def judged(epochs: float, losses: list[float], others: list[Tried]) -> bool:
        looks.append(losses)
        return len(others) == 1 and len(losses) == 2  # of trial 1 alone, then never again

    monkeypatch.setattr(search, "is_hopeless", judged)
    asked = ["--budget", "10m", "--trials", "2", "--epochs", "40"]
    end = search.Study.end

    def killed(study: Any, trial: Any, ended: str, *arguments: Any, **more: Any) -> None:
        if ended == HOPELESS:
            raise KeyboardInterrupt
        end(study, trial, ended, *arguments, **more)

    monkeypatch.setattr(search.Study, "end", killed)
    assert tuned(*asked) == 130
    monkeypatch.setattr(search.Study, "end", end)
    assert tuned(*asked, "--resume") == 0
    assert tried()[1].ended == HOPELESS
    assert len(tried()[1].curve) == 2
    capsys.readouterr()


@pytest.mark.slow
def test_a_killed_search_goes_on_as_if_never_stopped(capsys: Capture) -> None:
    Path("a.txt").write_text(TEXT * 20)
    asked = ["--budget", "20h", "--trials", "8", "--epochs", "3", "--hidden-size", "32"]
    assert tuned(*asked, output="whole.toml") == 0
    code = (
        "import sys\nfrom charrnn_fast.cli import main, tune\n"
        "from charrnn_fast.tune.space import Speed\n"
        "tune._Trials.speed = lambda self: Speed(2e6, 2e6)\nsys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "tune", "a.txt", "-o", "won.toml", "--threads", "1"]
    command += [*SMALL, *asked, "--resume", "auto"]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while "trial" not in (process.stdout.readline() or "trial"):
            pass
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert tuned(*asked, "--resume") == 0
    assert results() == results("whole.study")
    capsys.readouterr()


@pytest.mark.usefixtures("no_picture")
def test_the_budget_counts_what_was_used(monkeypatch: Patch, capsys: Capture) -> None:
    now = 0.0

    class Clock:
        """A second for each look."""

        def __init__(self) -> None:
            self._start = now

        @property
        def seconds(self) -> float:
            nonlocal now
            now += 1.0
            return now - self._start

    monkeypatch.setattr(search, "Stopwatch", Clock)
    assert tuned("--budget", "5m", "--epochs", "2") == 0
    done = tried()
    spent = sum(one.seconds for one in done)
    assert 240 < spent < 310
    assert tuned("--budget", "5m", "--epochs", "2", "--resume") == 0
    assert sum(one.seconds for one in tried()) - spent < 10
    assert "--resume with a larger --budget goes on" in capsys.readouterr().out
    assert tuned("--budget", "10m", "--epochs", "2", "--resume") == 0
    assert results()[: len(done) - 1] == [one._replace(seconds=0) for one in done[:-1]]
    spent = sum(one.seconds for one in tried())
    assert 540 < spent < 610
    capsys.readouterr()
    assert tuned("--epochs", "2", "--resume") == 0  # the budget stays
    assert "budget      10 min; " in capsys.readouterr().out
    assert sum(one.seconds for one in tried()) - spent < 10


@pytest.mark.usefixtures("no_picture")
def test_a_result_is_written_before_it_is_told(monkeypatch: Patch, capsys: Capture) -> None:
    written: list[bool] = []
    result = search.Search._result

    class Line(str):
        def __str__(self) -> str:
            written.append(Path("won.md").exists())
            return super().__str__()

    monkeypatch.setattr(search.Search, "_result", lambda *given: Line(result(*given)))
    assert tuned("--budget", "10m", "--trials", "1", "--epochs", "2") == 0
    assert written == [True]
    capsys.readouterr()


@pytest.mark.usefixtures("no_picture")
def test_a_long_trial_is_told_now_and_then(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(search, "_LINE_PERIOD", -1.0)
    assert tuned("--budget", "10m", "--trials", "1", "--epochs", "8") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" of 8")]
    assert [line.split()[-3] for line in told] == [f"{epoch}" for epoch in range(1, 9)]


@pytest.mark.usefixtures("no_picture")
def test_a_trial_that_only_guesses_is_told_and_no_winner(capsys: Capture) -> None:
    diverging = ["--optimizer", "sgd", "--learning-rate", "1e30", "--clip-norm", "inf"]
    assert tuned("--budget", "10m", "--trials", "2", *diverging) == 0
    assert [one.ended for one in tried()] == [GUESSING, GUESSING]
    printed = capsys.readouterr().out
    assert "no better than guessing" in printed
    assert "no trial is finished" in printed
    assert "no better than guessing" in Path("won.md").read_text()
    assert not Path("won.toml").exists()


@pytest.mark.usefixtures("no_picture")
def test_a_search_with_nothing_to_choose_ends(capsys: Capture) -> None:
    held = ["--epochs", "1", "--learning-rate", "0.01", "--dropout", "0"]
    assert tuned("--budget", "10m", *held) == 0
    assert len(tried()) == 1
    assert "what it chooses has been tried" in capsys.readouterr().out


@pytest.mark.usefixtures("no_picture")
def test_what_is_refused(capsys: Capture, monkeypatch: Patch) -> None:
    command = ["tune", "a.txt", "-o", "won.toml", *SMALL, "--trials", "1"]
    assert "must be a time" in refused([*command, "--budget", "60"], capsys)
    assert "--budget must be" in refused([*command, "--budget", "0.001s"], capsys)
    assert "read again, got standard input" in refused(["tune", "-", *command[2:]], capsys)
    assert "tune takes no log" in refused([*command, "--set", "log=a.jsonl"], capsys)
    assert "no search to resume" in refused([*command, "--resume"], capsys)
    late = [*command, "--epochs", "2", "--warmup", "3"]
    assert "--warmup must be below --epochs" in refused(late, capsys)
    Path("folder.toml").mkdir()
    assert "this is a folder" in refused(["tune", "a.txt", "-o", "folder.toml"], capsys)
    assert list(Path().glob("won*")) == []
    for mine in ("won.toml", "won.md"):
        Path(mine).write_text("mine")
        error = refused([*command, "--resume", "auto"], capsys)
        assert f"{mine} exists, and is of no search; another -o keeps it" in error
        Path(mine).unlink()
    Path("won.toml").write_text("seq_len = 20\n")
    both = [*command, "--config", "won.toml", "--overwrite"]
    assert "-o must be another file than --config" in refused(both, capsys)
    Path("won.toml").unlink()
    Path("won.study").write_text("mine")
    assert "no study" in refused([*command, "--overwrite"], capsys)
    assert Path("won.study").read_text() == "mine"
    Path("won.study").unlink()
    assert tuned("--budget", "10m", "--trials", "1") == 0
    capsys.readouterr()
    other = [*command, "--resume", "--cell", "gru"]
    assert "--cell must be left out, as in the search of won.study" in refused(other, capsys)
    Path("a.txt").write_text(TEXT[:-10])
    assert "the corpus must be the one that" in refused([*command, "--resume"], capsys)
    Path("a.txt").write_text(TEXT.upper())  # the same ids
    assert "must have the vocabulary of" in refused([*command, "--resume"], capsys)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'charrnn_fast[tune]'" in refused(command, capsys)


@pytest.mark.usefixtures("no_picture")
def test_overwriting_begins_anew(capsys: Capture) -> None:
    assert tuned("--budget", "10m", "--trials", "2") == 0
    assert Path("won.toml").exists()
    hopeless = ["--optimizer", "sgd", "--learning-rate", "1e30", "--clip-norm", "inf"]
    assert tuned("--budget", "10m", "--trials", "1", "--overwrite", *hopeless) == 0
    assert [one.ended for one in tried()] == [GUESSING]
    assert not Path("won.toml").exists()  # it was the old search's
    capsys.readouterr()


def test_the_command_imports_optuna_only_to_tune() -> None:
    code = "import sys, charrnn_fast.cli; print('optuna' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_checkpoint_of_another_kind_stays(capsys: Capture) -> None:
    Path("won.trial.safetensors").write_text("mine")
    error = refused(
        ["tune", "a.txt", "-o", "won.toml", *SMALL, "--trials", "1", "--overwrite"], capsys
    )
    assert "won.trial.safetensors" in error
    assert Path("won.trial.safetensors").read_text() == "mine"


# ---- bounds ----

BOOK = Text(trained=900_000, evaluated=100_000, symbols=80)
FAST = Speed(3e10, 3e9)


class Widest:
    """Draws the largest of everything."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return high

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return high


def test_the_budget_bounds_what_a_trial_costs() -> None:
    wide = Space.within(7200, BOOK, {}, FAST, 360).settings(Widest())
    narrow = Space.within(600, BOOK, {}, FAST, 360).settings(Widest())
    assert narrow["hidden_size"] < wide["hidden_size"]
    for budget, found in ((7200, wide), (600, narrow)):
        whole = Space.within(budget, BOOK, {}, FAST, 360)
        taken = whole.seconds(found["num_layers"], found["hidden_size"], found["epochs"])
        assert taken <= budget / 10


def test_first_trials_are_the_defaults_and_a_wide_model_within_the_bounds() -> None:
    plain, wide = Space.within(36000, BOOK, {}, FAST, 360).first()
    assert (plain["width"], plain["epochs"], plain["dropout"]) == (4, 20, 0.0)
    assert wide["width"] > 4
    small = Space.within(120, BOOK, {}, FAST, 360)
    for first in small.first():
        layers, width = first["num_layers"], 32 * first["width"]
        assert small.seconds(layers, width, first["epochs"]) <= 12


def test_the_wide_model_of_a_short_text_has_updates_enough() -> None:
    short = Text(trained=9_000, evaluated=1_000, symbols=80)
    for budget in (10, 3600):
        whole = Space.within(budget, short, {}, FAST, 3)
        assert 3 * whole.first()[1]["epochs"] >= 320
        layers, units = whole._most_layers(), whole._most_units(whole._most_layers())
        assert 3 * whole._most_epochs(layers, 32 * units) >= 64
    held = Space.within(600, BOOK, {"epochs": 2}, FAST, 360)
    assert held.first()[1]["width"] == held._most_units(2)


def test_a_long_text_needs_a_larger_budget_or_bounded_trials() -> None:
    long = Text(trained=90_000_000, evaluated=10_000_000, symbols=80)
    assert Space.within(3600, long, {}, FAST, 36_000).is_narrow
    with pytest.raises(ValueError, match=r"shorter text or --steps with --evaluate-length takes"):
        Space.within(60, long, {}, FAST, 36_000)
    with pytest.raises(ValueError, match=r"text, fewer --epochs or a smaller --hidden-size takes"):
        Space.within(60, long, {"epochs": 2, "hidden_size": 512}, FAST, 36_000)
    held = {"steps": 2000, "evaluate_length": 100_000}
    bounded = Space.within(3600, long._replace(evaluated=100_000), held, FAST, 36_000)
    assert not bounded.is_narrow
    assert bounded.settings(Widest())["hidden_size"] > 128


def test_held_settings_are_not_drawn() -> None:
    held = {"hidden_size": 100, "dropout": 0.3, "schedule": "linear", "steps": 720}
    found = Space.within(36000, BOOK, held, FAST, 360).settings(Widest())
    assert set(found) == {"num_layers", "learning_rate"}


def test_a_held_warm_up_ends_before_each_trial() -> None:
    class Narrowest(Widest):
        def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
            return low

    held = {"schedule": "cosine", "warmup": 3.0}
    for draw in (Widest(), Narrowest()):
        assert Space.within(36000, BOOK, held, FAST, 360).settings(draw)["epochs"] > 3
    assert all(one["epochs"] > 3 for one in Space.within(600, BOOK, held, FAST, 360).first())


def test_dropout_of_one_layer_is_that_of_its_output() -> None:
    found = Space.within(36000, BOOK, {"num_layers": 1}, FAST, 360).settings(Widest())
    assert (found["dropout"], found["output_dropout"]) == (0.0, 0.7)


def test_the_speed_is_measured() -> None:
    makes = tune._Trials(Corpus.from_text(TEXT), {"batch_size": 6, "seq_len": 20})
    speed = MEASURED(makes)
    assert speed.training > 0
    assert speed.evaluation > 0
    assert min(speed) >= 0


def test_the_speed_is_a_line_through_two_models() -> None:
    speed, rest = tune._line((20_000, 3e-6), (220_000, 13e-6))
    assert speed == pytest.approx(2e10, rel=0.1)  # 50 ps per parameter
    assert rest == pytest.approx(2e-6, rel=0.1)
    speed, rest = tune._line((20_000, 5e-6), (20_000, 5e-6))  # both sizes are held
    assert speed == pytest.approx(4e9, rel=0.1)
    assert rest < 1e-20
    speed, rest = tune._line((20_000, 5e-6), (220_000, 4e-6))  # another program ran meanwhile
    assert speed > 0
    assert rest >= 0
    assert all(number >= 0 for number in tune._line((20_000, 0.0), (220_000, 0.0)))


# ---- the early end ----


def peer(epochs: float, losses: list[float], ended: str = FINISHED) -> Tried:
    curve = [[epochs * n / 8, loss] for n, loss in enumerate(losses, 1)]
    return Tried(0, {}, 1, epochs, curve, 1.0, ended)


def test_a_trial_is_compared_at_equal_shares_with_trials_of_no_more_epochs() -> None:
    peers = [peer(10, [3.0, 2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4]) for _ in range(4)]
    assert search.is_hopeless(10, [3.0, 2.1], peers)
    assert search.is_hopeless(20, [3.0, 2.1], peers)
    assert not search.is_hopeless(9, [3.0, 2.1], peers)  # it has read less so far
    assert not search.is_hopeless(10, [3.0, 2.03], peers)  # it is about as good
    assert not search.is_hopeless(10, [5.0], peers)  # it is too early
    assert not search.is_hopeless(10, [3.0, 2.1], peers[:3])  # too few to tell
    assert not search.is_hopeless(10, [5.0] * 8, peers)  # it is done
    ended = [peer(10, [3.0, 2.0], HOPELESS) for _ in range(4)]
    assert not search.is_hopeless(10, [3.0, 2.1], ended)


def test_the_winner_is_a_finished_trial() -> None:
    best = peer(10, [3.0, 1.5, 1.6])
    assert search.winner([peer(10, [3, 2]), best, peer(5, [1.0], HOPELESS)]) is best
    assert search.winner([peer(5, [1.0], UNFINISHED)]) is None


def test_the_dropout_that_is_shown_is_the_one_that_was_chosen() -> None:
    assert search.dropout_of({}, {"dropout": 0.0, "output_dropout": 0.3}) == 0.3  # of one layer
    assert search.dropout_of({"output_dropout": 0.5}, {"dropout": 0.1}) == 0.1
    assert search.dropout_of({"dropout": 0.2}, {"hidden_size": 32}) == 0.2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.6, "1 min"), (182, "3 min 2 s"), (3600, "1 h"), (3900, "1 h 5 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert search.duration(seconds) == words


def test_the_evaluations_of_a_trial_are_as_many_as_its_shares() -> None:
    for steps in (1, 7, 8, 9, 100, 1000):
        every = tune.evaluate_every(steps)
        assert -(-steps // every) <= space.EVALUATIONS


@pytest.mark.parametrize("most", [1, 1.9, 2.1, 4, 15, 40, 150, 170, 3000, 100_000])
def test_the_axes_of_the_picture_have_few_labels(most: float) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    for least in (0.0005, 0.003, 24_000):
        axes = figure.add_subplot()
        values = [least, least * most]
        axes.plot(values, [1, 2], "o")
        report._logarithmic(axes, values)
        low, high = axes.get_xlim()
        assert 1 <= sum(low <= tick <= high for tick in axes.get_xticks()) <= 6


@pytest.mark.parametrize(
    ("number", "words"), [(0.003, "0.003"), (20, "20"), (28_900, "28.9k"), (1.3e6, "1.3M")]
)
def test_numbers_of_the_picture(number: float, words: str) -> None:
    assert report._short(number) == words
