"""benchmarks/gpu_check.sh and its programs, as far as they need neither a card nor a compiler."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unsanitized("runs programs")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

PTXAS = """\
ptxas info    : 8 bytes gmem
ptxas info    : Compiling entry function '_Z11gemm_kernelIfEvPKT_' for 'sm_80'
ptxas info    : Function properties for _Z11gemm_kernelIfEvPKT_
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers, 16 bytes smem, 608 bytes cmem[0]
ptxas info    : Compiling entry function '_Z11gemm_kernelIdEvPKT_' for 'sm_80'
ptxas info    : Function properties for _Z11gemm_kernelIdEvPKT_
    0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes smem, 608 bytes cmem[0]
"""


def program(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / "gpu" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_registers_and_spills() -> None:
    registers = program("registers")
    kernels = registers.kernels_in(PTXAS)
    assert [(k.name, k.registers, k.spilled, k.frame) for k in kernels] == [
        ("gemm_kernel, float32", 72, 0, 16),
        ("gemm_kernel, float64", 255, 8, 0),
    ]
    assert registers.table({"sm_80": kernels, "sm_90a": kernels[:1] * 2}).splitlines()[2:] == [
        "| gemm_kernel, float32 | 2 | 72 | 72 |",
        "| gemm_kernel, float64 | 1 | 255 | - |",
    ]


def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, status: int) -> None:
    """An nvcc that says this."""
    (tmp_path / "said").write_text(said)
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\ncat '{tmp_path}/said' >&2\nexit {status}\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(nvcc))


def test_a_kernel_that_spills_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registers = program("registers")
    monkeypatch.setattr(registers, "SOURCES", registers.SOURCES[:1])
    compiler(tmp_path, monkeypatch, PTXAS, 0)
    assert registers.main("sm_80") == 1
    out, err = capsys.readouterr()
    assert "1 kernels spill. 1 have arrays in local memory, of 16 bytes." in out
    assert "sm_80: gemm_kernel, float64 spills 8 bytes" in err
    compiler(tmp_path, monkeypatch, PTXAS[: PTXAS.rindex("ptxas info    : Compiling")], 0)
    assert registers.main("sm_80", "sm_90a") == 0
    compiler(tmp_path, monkeypatch, "error: warning", 1)
    with pytest.raises(SystemExit, match="does not compile:\nerror: warning"):
        registers.main()
    monkeypatch.delenv("CUDACXX")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert registers.main() == 2


def test_the_report(tmp_path: Path) -> None:
    report = program("report")
    (tmp_path / "test.log").write_text("...\n108 checks, 0 failures\n")
    row = {"case": "train", "device_ms": [0.5, 0.61234]}
    (tmp_path / "time.jsonl").write_text(json.dumps(row) + "\nnot a row\n")
    assert report.main(str(tmp_path)) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["rehearsed"] is True and found["time"] == [row]
    assert found["stages"] == {"test": ["108 checks, 0 failures"]}
    text = (tmp_path / "report.md").read_text()
    assert "A rehearsal on the emulator" in text and "has not run" in text
    assert "| test | 108 checks, 0 failures |" in text and "| train | 0.5 / 0.612 |" in text
    (tmp_path / "card.txt").write_text("|   0  NVIDIA H200 NVL       On  | 00 |\n")
    report.main(str(tmp_path))
    text = (tmp_path / "report.md").read_text()
    assert "Card: NVIDIA H200 NVL" in text and "rehearsal" not in text


def test_the_stages_have_names(tmp_path: Path) -> None:
    script = BENCHMARKS / "gpu_check.sh"
    for arguments, message in (
        ((), "usage: benchmarks/gpu_check.sh OUTDIR [STAGE...]"),
        ((tmp_path / "out", "fly"), "there is no stage fly: build test python time torch report"),
    ):
        done = subprocess.run([script, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and message in done.stderr


def test_a_stage_that_cannot_run_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REHEARSE", "1")
    monkeypatch.setenv("PYTHON", "false")  # has no module
    command = [str(BENCHMARKS / "gpu_check.sh"), str(tmp_path / "out"), "python", "torch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("left out: false has no numpy") == 2
    monkeypatch.setenv("PYTHON", sys.executable)
    done = subprocess.run([*command[:2], "report"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.splitlines()[-2] == str(tmp_path / "out/report.md")


def test_after_a_stage_that_fails_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REHEARSE", "1")
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("TEST_LIMIT", "0.001")  # seconds
    monkeypatch.setenv("BUILD_LIMIT", "0.001")
    out = tmp_path / "out"

    def check(*stages: str) -> subprocess.CompletedProcess[str]:
        command = [str(BENCHMARKS / "gpu_check.sh"), str(out), *stages]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = check("test", "report")
    assert done.returncode == 1
    assert f"test failed: see {out}/test.log" in done.stderr
    assert (out / "report.md").exists() and done.stdout.rstrip().endswith("failed: test")
    done = check("build", "report")
    assert done.returncode == 1 and "==> [0 s] report" not in done.stdout
    assert f"build failed: see {out}/build.log" in done.stderr
