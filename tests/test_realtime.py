"""Streams in programs of others: the page's program, the guitar effect; the benchmark, no times."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import charrnn_fast as cf
from installed import ROOT, run, run_here
from test_article import _example

AUDIO, BENCHMARK = ROOT / "examples" / "audio", ROOT / "benchmarks" / "realtime.py"
PAGE = (ROOT / "docs" / "realtime.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.unsanitized("its library is not installed")


def build(source: Path) -> Path:
    """The folder of the programs of a project outside of the repository."""
    folder = source / "build"
    run("cmake", "-S", source, "-B", folder, f"-DCMAKE_PREFIX_PATH={cf.get_cmake_dir()}")
    run("cmake", "--build", folder)
    return folder


@pytest.mark.slow
def test_the_pages_program_prints_what_the_page_says(tmp_path: Path) -> None:
    for name, text in re.findall(r"^```\w+ (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (printed,) = re.findall(r"^\$ build/stream\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert run_here(build(tmp_path) / "stream") == printed


@pytest.mark.slow
def test_the_effect_in_blocks_is_pythons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short training; the sound from C++ is Python's, byte for byte."""
    ratio = _example("audio/train").main([str(tmp_path), "--steps", "150"])
    assert "error-to-signal ratio on unheard strings" in capsys.readouterr().out
    assert ratio < 0.4, "less than the clean sound has"
    for name in ("CMakeLists.txt", "effect.cpp"):
        shutil.copy(AUDIO / name, tmp_path)
    effect = build(tmp_path) / "effect"
    model, clean, out = (tmp_path / name for name in ("model.txt", "clean.wav", "out.wav"))
    expected = (tmp_path / "expected.wav").read_bytes()
    for block in ("1", "64", "1000"):
        printed = run(effect, model, clean, out, block)
        assert f"in blocks of {block}:" in printed
        assert out.read_bytes() == expected
        out.unlink()

    # What is wrong is said, and nothing is written.
    words = model.read_text(encoding="ascii").split("\n", 2)
    (tmp_path / "other.txt").write_text("\n".join(["lstm 1 21 1", *words[1:]]), encoding="ascii")
    (tmp_path / "short.txt").write_text("\n".join(words)[:900], encoding="ascii")
    (tmp_path / "cut.wav").write_bytes(clean.read_bytes()[:1000])
    for arguments, message in (
        (("other.txt", "clean.wav"), "must have weight_ih_l0 here"),
        (("short.txt", "clean.wav"), "must have more numbers for weight_ih_l0"),
        (("none.txt", "clean.wav"), "is no model"),
        (("model.txt", "model.txt"), "must be a WAV file"),
        (("model.txt", "cut.wav"), "is cut off"),
        (("model.txt",), "usage: effect MODEL IN.wav OUT.wav [BLOCK]"),
    ):
        command = [str(effect), *(str(tmp_path / name) for name in arguments)]
        if len(arguments) == 2:
            command.append(str(out))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr
        assert not out.exists()


@pytest.mark.slow
def test_the_benchmark_measures_every_case(tmp_path: Path) -> None:
    json_path, markdown_path = tmp_path / "run.json", tmp_path / "run.md"
    options = ("--repeats", "1", "--seconds", "0", "--json", json_path, "--markdown", markdown_path)
    printed = run(sys.executable, BENCHMARK, *options)
    assert markdown_path.read_text(encoding="utf-8") in printed
    rows = json.loads(json_path.read_text(encoding="utf-8"))["rows"]
    assert [(row["cell"], row["hidden_size"], row["way"]) for row in rows] == [
        (cell, size, way)
        for cell in ("lstm", "gru")
        for size in (16, 32, 64)
        for way in ("block of 64", "single steps")
    ]
    assert all(row["times"]["stream"][0] > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repeats", "0"), "--repeats must be >= 1, got 0"),
        (("--rtneural", "/nowhere"), "--rtneural must hold RTNeural/RTNeural.h, got /nowhere"),
    ],
)
def test_wrong_arguments_of_the_benchmark(arguments: tuple[str, ...], message: str) -> None:
    command = [sys.executable, str(BENCHMARK), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
