"""benchmarks/ngram.py, as far as it goes without KenLM's programs."""

from __future__ import annotations

import math
import stat
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks"
TEXT = "abc abd abe\n" * 100 + "xy"  # x and y are in the test part alone


@pytest.fixture(autouse=True)
def imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROGRAM))


def test_unknown_words_share_their_probability() -> None:
    import ngram

    printed = b"3=5 1 -0.5\t4=0 1 -2\t3=5 2 -0.25\tTotal: -2.75 OOV: 1\n".split(b"\t")
    expected = 2.25 * math.log(10) + math.log(7)  # without the first word
    assert ngram.total(printed, 3, 7) == pytest.approx(expected)
    with pytest.raises(ngram.NgramError, match="must print 4 probabilities, got 3"):
        ngram.total(printed, 4, 7)


def test_ids_are_one_line_of_words() -> None:
    import ngram

    assert ngram.words(np.array([12, 0, 3])) == b"12 0 3\n"


# Programs in KenLM's place: each word of order N costs N's distance from 4 in tenths, and 1.
LMPLZ = """cat > /dev/null
while [ $# -gt 1 ]; do
    case $1 in -o) n=$2 ;; --arpa) file=$2 ;; esac
    shift
done
echo $((n > 4 ? n - 4 : 4 - n)) > "$file"
"""
QUERY = """n=$(cat "$4")
for word in $(cat); do printf "%s=1 1 -1.$n\\t" $word; done
"""


def fake(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_order_is_chosen_by_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ngram

    (tmp_path / "text.txt").write_text(TEXT)
    fake(tmp_path / "lmplz", LMPLZ)
    fake(tmp_path / "query", QUERY)
    ngram.main([str(tmp_path / "text.txt"), "--kenlm", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = [line.strip("|").split("|") for line in printed.splitlines()[2:6]]
    losses = {order: float(loss) for order, loss in rows}
    expected = {" 3 ": 1.1, " 4 ": 1.0, " 5 ": 1.1, " 6 ": 1.2}
    assert losses == pytest.approx({n: x * math.log(10) for n, x in expected.items()}, abs=1e-4)
    assert f"Test, order 4: {math.log(10):.4f} nats per character. 2 of its 121 " in printed


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import ngram

    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(SystemExit, match="--kenlm must be the folder of lmplz and query"):
        ngram.main([str(tmp_path / "text.txt"), "--kenlm", str(tmp_path)])
    fake(tmp_path / "lmplz", "echo no discounts >&2; exit 3")
    with pytest.raises(SystemExit, match="lmplz failed with 3: no discounts"):
        ngram.main([str(tmp_path / "text.txt"), "--kenlm", str(tmp_path)])
    with pytest.raises(SystemExit):
        ngram.main([str(tmp_path / "text.txt"), "--kenlm", str(tmp_path), "--orders", "1"])
    assert "--orders must be 2 or more, got 1" in capsys.readouterr().err
