"""docs/run.py --check: what it reports and what it ignores."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from typing import Any

import pytest

from charrnn_fast import _core

SCRIPT = Path(__file__).parents[1] / "docs" / "run.py"
SAME = r"""
```console
$ echo one > a; cat a
one
$ cat missing  # fails
cat: missing: No such file or directory
$ echo "step 3  loss 1.5  12,345 characters/s"; echo 'memory      5 MB beside the text'
step 3  loss 1.5  1 characters/s
memory      400 MB beside the text
$ echo ' 23%  loss 1.550 nats/character  60,155 characters/s  32 s left'; echo end
 99%  loss 1.1 nats/character  1 characters/s  1 s left
 99%  loss 1.0 nats/character  1 characters/s  0 s left
end
$ echo "drawn to $DOCS/images/a.png"; touch "$DOCS/images/a.png"
drawn to docs/images/a.png
```
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, as on a machine on which the outputs of the documents were made."""
    spec = importlib.util.spec_from_file_location("docs_run", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ISA", _core.available_isas()[0])
    monkeypatch.setattr(module, "PYTHON", platform.python_version())
    monkeypatch.setenv("CHARRNN_ISA", "")  # what the check sets is put back
    monkeypatch.setenv("CHARRNN_NUM_THREADS", "1")
    return module


def test_what_varies_is_no_difference(
    tmp_path: Path, script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "document.md"
    document.write_text(SAME, encoding="utf-8")
    assert script.check([document]) == 0
    assert "+++" not in capsys.readouterr().out


def test_a_changed_output_is_shown_and_not_written(
    tmp_path: Path, script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "document.md"
    changed = SAME.replace("\none\n", "\ntwo\n")
    document.write_text(changed, encoding="utf-8")
    assert script.check([document]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line[0] in "+-"] == [
        f"--- {document}",
        "+++ now",
        "-two",
        "+one",
    ]
    assert document.read_text(encoding="utf-8") == changed


def test_elsewhere_nothing_is_checked(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "PYTHON", "3.0")
    assert script.check([]) == 0
    assert capsys.readouterr().out.startswith("nothing is checked: the documents need ")


def test_the_documents_left_out_are_there(script: Any) -> None:
    assert {path.name for path in SCRIPT.parent.glob("*.md")} > set(script.LEFT_OUT)
