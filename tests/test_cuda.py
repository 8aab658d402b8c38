"""CUDA without a card: the emulator, tests/cuda/emulator, and the kernels of the package on it.

Of the emulator: right kernels give no finding, mistakes are found. Orders, marked memory and
sanitizers each find mistakes of their own; the tables say which must see what.

Of the package's kernels: they give the CPU's bits, for all cells and options, in any order of the
threads, with no finding.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import charrnn_fast as cf
import devices

pytestmark = [
    pytest.mark.slow,
    pytest.mark.unsanitized("builds programs of its own"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed"),
]

FOLDER = Path(__file__).parent / "cuda"
ROOT = FOLDER.parents[1]

# The kernels' sums along a row are those of 32-byte vectors, with fused multiply-add: other sets of
# the CPU round otherwise.
TWIN = "x86-64-v3"
HAS_TWIN = TWIN in cf.build_info()["runnable_isas"]
fused = pytest.mark.skipif(not HAS_TWIN, reason=f"{TWIN} does not run here")

# (case, mistake): what the plain build must say of it in one of 50 orders.
PLAIN = {
    ("reverse", 1): "unwritten memory",
    ("rotate", 1): "wrong result",
    ("barriers", 1): "divergent barrier: thread 32 .* ends",
    ("barriers", 2): "divergent barrier: .* others of its block at that at",
    ("warp", 1): "unwritten memory",
    ("warp", 2): "divergent warp",
    ("tiles", 1): "unwritten memory",
    ("tiles", 2): "unwritten memory",
    ("tiles", 3): "unwritten memory",
    ("cluster", 1): "has not begun is accessed, by thread",
    ("cluster", 2): "has ended is accessed, by thread",
    ("ring", 1): "misuse: .* all 1 have arrived",
    ("ring", 2): "misuse: .* all 1 have arrived",
    ("ring", 3): "deadlock: .*wait for an mbarrier",
    ("ring", 4): "unwritten memory|wrong result",
    ("grid", 2): "wrong result",
    ("grid", 3): "deadlock: .*only a cooperative launch",
    ("words", 1): "wrong result",
    ("bounds", 1): "overrun: dynamic shared memory",
    ("bounds", 2): "wrong result",
    ("bounds", 3): "overrun: an allocation of 128 bytes",
    ("bounds", 4): "unwritten memory: word 31",
    ("bounds", 5): "unwritten memory: word 3 ",
    ("products", 1): "wrong result",
    ("products", 2): "wrong result",
    ("limits", 1): "launch refused: a block must have 1 to 1024 threads",
    ("limits", 2): "launch refused: a block's shared memory must be at most 232448",
    ("limits", 3): "launch refused: a cluster must have 1 to 16 blocks",
    ("limits", 4): "launch refused: the grid's blocks along x must be a multiple",
    ("limits", 5): "launch refused: a cooperative launch must have at most 264 blocks",
    ("limits", 6): r"launch refused: a cluster must have 1 to 1 blocks, got 2 \(A100\)",
    ("capture", 1): r"stream capture: allocate\(\)",
    ("capture", 2): r"stream capture: synchronize\(\)",
    ("capture", 3): "stream capture: a wait of the stream that is being captured",
    ("streams", 1): "unwritten memory",
    ("streams", 2): "unwritten memory",
    ("streams", 3): "wrong result",
    ("host", 1): "the host accesses the device's memory",
    ("host", 2): r"misuse: release\(\)",
    ("exchange", 1): "wrong result|unwritten memory",
    ("exchange", 3): "wrong result|unwritten memory",
    ("exchange", 4): "wrong result|unwritten memory",
    ("exchange", 5): "wrong result|unwritten memory|misuse",
    ("exchange", 6): "wrong result|unwritten memory|misuse",
    ("exchange", 7): "deadlock: .*wait for an mbarrier",
    ("exchange", 8): "misuse|deadlock|wrong result|unwritten memory",
    ("exchange", 9): "wrong result|unwritten memory",
}
# What the thread sanitizer must see, in the natural order. The first no order shows.
RACES = [
    ("grid", 1),
    ("exchange", 2),
    ("reverse", 1),
    ("rotate", 1),
    ("warp", 1),
    ("tiles", 2),
    ("cluster", 1),
    ("ring", 4),
    ("grid", 2),
]
# What the address sanitizer must see. Reads past the end only it does.
OVERRUNS = [("bounds", 1), ("bounds", 2), ("bounds", 3), ("cluster", 1), ("cluster", 2)]


class Programs(dict[str, Path]):
    """The emulator's tests in each variant, built when they are asked for."""

    def __missing__(self, variant: str) -> Path:
        folder = devices.build("test_emulator", "test_kernels", sanitizer=variant)
        return self.setdefault(variant, folder / "test_emulator")


@pytest.fixture(scope="module")
def built(emulator: Path) -> dict[str, Path]:
    return Programs(plain=emulator / "test_emulator")


def kernels_of(built: dict[str, Path], variant: str) -> Path:
    return built[variant].with_name("test_kernels")


def run(program: Path, *arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **({"CHARRNN_ISA": TWIN} if HAS_TWIN else {})},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_mistake_is_in_the_tables(built: dict[str, Path]) -> None:
    listed = {
        (name, mistake)
        for name, mistakes in (
            line.split() for line in run(built["plain"], "--list")[1].split("\n")[:-1]
        )
        for mistake in range(1, int(mistakes) + 1)
    }
    assert listed == {*PLAIN, *RACES, *OVERRUNS}


@pytest.mark.parametrize(("variant", "last"), [("plain", 50), ("address", 3), ("thread", 2)])
def test_right_kernels_have_no_finding(built: dict[str, Path], variant: str, last: int) -> None:
    for line in run(built[variant], "--list")[1].splitlines():
        code, said = run(built[variant], line.split()[0], 0, 0, last)
        assert code == 0 and "Sanitizer" not in said, f"{line}: {said}"
        assert said.startswith("right: ")


@pytest.mark.parametrize(("plant", "finding"), PLAIN.items(), ids=str)
def test_a_mistake_is_found(built: dict[str, Path], plant: tuple[str, int], finding: str) -> None:
    code, said = run(built["plain"], *plant, 0, 50)
    assert code != 0 and re.search(finding, said, re.DOTALL), said


@pytest.mark.parametrize("plant", RACES, ids=str)
def test_a_race_is_found(built: dict[str, Path], plant: tuple[str, int]) -> None:
    last = 1 if plant == ("ring", 4) else 0  # it takes a store that comes early
    _, said = run(built["thread"], *plant, 0, last)
    assert "WARNING: ThreadSanitizer: data race" in said, said
    assert ".cuh:" in said or "accesses.cpp" in said, said


def test_only_the_thread_sanitizer_finds_a_relaxed_arrival(built: dict[str, Path]) -> None:
    code, said = run(built["plain"], "grid", 1, 0, 50)
    assert code == 0, said


@pytest.mark.parametrize("plant", OVERRUNS, ids=str)
def test_an_overrun_is_found(built: dict[str, Path], plant: tuple[str, int]) -> None:
    code, said = run(built["address"], *plant, 0, 0)
    assert code != 0 and "ERROR: AddressSanitizer" in said and "plants.cuh:" in said, said


def test_fibers_by_ucontext(tmp_path: Path) -> None:
    """What processors without a switch of their own use."""
    sources = sorted((FOLDER / "emulator").glob("*.cpp"))
    command = ["g++", "-std=c++20", "-O1", "-DCUDA_EMULATOR_UCONTEXT", f"-I{FOLDER}"]
    command += [*(f"-I{ROOT / name}" for name in ("cuda", "cpp/src", "cpp/include"))]
    command += [*map(str, sources), str(FOLDER / "test_emulator.cpp")]
    subprocess.run([*command, "-o", str(tmp_path / "program")], check=True)
    for case in ("rotate", "tiles", "ring", "grid", "products"):
        code, said = run(tmp_path / "program", case, 0, 0, 5)
        assert code == 0, said


@fused
@pytest.mark.parametrize("order", range(8))
def test_kernels_give_the_cpus_bits(built: dict[str, Path], order: int) -> None:
    """Each order a part of the cases; all of them together."""
    code, said = run(kernels_of(built, "plain"), order, 8, order)
    assert code == 0 and " 0 failures" in said, said


# How recurrent layers run: tier; units of a block and rows of a group at most, so that these small
# layers have several of both.
TIERS: list[tuple[object, ...]] = [
    ("T4",),
    ("T1",),
    ("T1", 0, 3),
    ("T2", 7, 1),
    ("T2", 2, 3),
    ("T3", 5, 2),
    ("T3", 3, 7),
    ("T3", 2, 4, "barrier"),
]


@fused
@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: "-".join(map(str, tier)))
def test_tiers_give_the_cpus_bits(built: dict[str, Path], tier: tuple[object, ...]) -> None:
    """Each in an order of its own, a part of the cases; those from the first are captured, too."""
    number = TIERS.index(tier)
    code, said = run(kernels_of(built, "plain"), number, 9, (number + 4) % 9, *tier)
    assert code == 0 and " 0 failures" in said, said


@fused
@pytest.mark.parametrize("tier", [("T1", 0, 3), ("T2", 5, 3), ("T3", 5, 2)], ids=str)
@pytest.mark.parametrize(
    ("variant", "every", "first"), [("address", 130, 65), ("thread", 400, 195)]
)
def test_tiers_have_no_finding(
    built: dict[str, Path], tier: tuple[object, ...], variant: str, every: int, first: int
) -> None:
    code, said = run(kernels_of(built, variant), 2, every, first, *tier)
    assert code == 0 and " 0 failures" in said and "Sanitizer" not in said, said


DESCRIBE = """
import sys
sys.path.insert(0, sys.argv[1])
import emulated_device as device

def refused(call, *arguments):
    try:
        call(*arguments)
    except ValueError as error:
        return str(error)

def tiers(*arguments, **options):
    return [line.split()[3] for line in device.describe(*arguments, **options).splitlines()]

assert device.tier() is None
assert tiers("lstm", 128, 2, 50, 50) == ["T1"] * 4
assert tiers("lstm", 128, 1, 50, 50, float64=True) == ["T4"] * 2
assert tiers("rnn", 256, 1, 8, 9, nonlinearity="relu") == ["T1"] * 2
assert tiers("gru", 1024, 1, 64, 128) == tiers("lstm", 13, 1, 4, 1) == ["T4"] * 2
assert "(it has a projection)" in device.describe("lstm", 13, 1, 4, 5, proj_size=3)
assert "(it has layer normalization)" in device.describe("lstm", 13, 1, 4, 5, layer_norm=True)
device.set_tier("T3")
assert device.tier() == "T3" and tiers("gru", 1024, 1, 64, 128) == ["T3"] * 2
device.set_tier("T2")
assert "in clusters of 4" in device.describe("lstm", 256, 1, 64, 128)
said = refused(device.describe, "lstm", 1024, 1, 64, 128)
assert said == (
    "the tier is forced to be T2, which cannot run the forward pass of a layer of hidden_size "
    "1024: no cluster holds the weights; force T4 or none"
), said
device.set_tier(None)
assert device.tier() is None
assert refused(device.set_tier, "T5") == "tier must be T1, T2, T3 or T4, got T5"
assert refused(device.describe, "lstm", 0, 1, 4, 5) == "hidden_size must be at least 1, got 0"
"""


def test_plans_of_layers(built: dict[str, Path]) -> None:
    folder = built["plain"].parent
    code, said = run(Path(sys.executable), "-c", DESCRIBE, folder)
    assert code == 0, said


def test_a_tier_of_the_environment(built: dict[str, Path]) -> None:
    program = [sys.executable, "-c", DESCRIBE, str(built["plain"].parent)]
    environment = {**os.environ, "CHARRNN_CUDA_TIER": "t1"}
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=environment)
    assert "CHARRNN_CUDA_TIER must be T1, T2, T3 or T4, got t1" in done.stderr, done.stderr


@fused
def test_a_tier_that_is_none(built: dict[str, Path]) -> None:
    program = kernels_of(built, "plain")
    code, said = run(program, 0, 400, 35, "T5")
    assert code == 1 and "tier must be T1, T2, T3 or T4, got T5" in said, said


@fused
@pytest.mark.parametrize(("order", "first"), [(0, 9), (1, 46), (2, 63), (1, 12), (2, 8)])
def test_kernels_stay_in_their_arrays(built: dict[str, Path], order: int, first: int) -> None:
    code, said = run(kernels_of(built, "address"), order, 100, first)
    assert code == 0 and " 0 failures" in said and "Sanitizer" not in said, said


@fused
@pytest.mark.parametrize(("order", "first"), [(0, 7), (2, 63), (0, 2), (2, 33)])
def test_kernels_have_no_races(built: dict[str, Path], order: int, first: int) -> None:
    code, said = run(kernels_of(built, "thread"), order, 400, first)
    assert code == 0 and " 0 failures" in said and "Sanitizer" not in said, said


@fused
@pytest.mark.parametrize(
    ("variant", "orders", "products"),
    [("plain", range(1, 9), range(6)), ("address", [2], range(6)), ("thread", [2], range(3))],
)
def test_large_tiles(
    built: dict[str, Path], variant: str, orders: Iterable[int], products: Iterable[int]
) -> None:
    """bfloat16, TF32, float32; these with weights stored as bfloat16; float64."""
    for order, product in itertools.product(orders, products):
        code, said = run(kernels_of(built, variant), order, "tiles", product)
        assert code == 0 and " 0 failures" in said and "Sanitizer" not in said, said


@fused
def test_python_on_the_emulated_device(built: dict[str, Path]) -> None:
    orders = [str(order) for order in range(20)]
    program = [sys.executable, str(Path(__file__).parent / "device_results.py")]
    code, said = run(*map(Path, program), built["plain"].parent, "emulated_device", *orders)
    assert code == 0 and said.count(" 0 different") == len(orders), said


@fused
def test_c_on_the_emulated_device(built: dict[str, Path]) -> None:
    """The tests of C's models and language models, which take the device by its name."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command += [str(Path(__file__).with_name("test_c.py"))]
    command += [
        "-k",
        "devices or shape or forward or step or updates or stream or texts or losses or told",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "CHARRNN_ISA": TWIN,
            "CHARRNN_TEST_C_DEVICE": "cuda",
            "LD_LIBRARY_PATH": str(built["plain"].parent),
        },
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def test_the_benchmark_compares_before_it_times(built: dict[str, Path]) -> None:
    code, said = run(built["plain"].with_name("time_device"), "0.01", "tiny")
    rows = [json.loads(line) for line in said.splitlines()]
    assert code == 0 and [row["tier"] for row in rows].count(None) == 18, said
    assert {row["tier"] for row in rows} == {None, "T1", "T2", "T3", "T4"}
    for row in rows:
        assert 0 < row["device_ms"][0] <= row["device_ms"][1]
        if row["compute"] == "float32":
            assert row["device_result"] == pytest.approx(row["cpu_result"], rel=1e-6)
        elif row["what"] != "sample":  # a text differs where a draw is near a boundary
            assert row["device_result"] == pytest.approx(row["cpu_result"], rel=1e-2)
    code, said = run(built["plain"].with_name("time_device"), "0.01", "huge")
    assert code == 2 and said.startswith("usage: ")


@fused
def test_texts_are_the_cpus(built: dict[str, Path]) -> None:
    code, said = run(built["plain"].with_name("compare_texts"), 8, 100)
    rows = [json.loads(line) for line in said.splitlines()]
    assert code == 0 and [row["cell"] for row in rows] == ["lstm", "gru", "rnn"], said
    assert all(row["different"] == 0 and row["tokens_used"] > 10 for row in rows)


@pytest.mark.skipif(shutil.which("nvcc") is not None, reason="nvcc is installed")
def test_the_check_of_a_card_needs_nvcc(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu_check.sh", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "nvcc is missing" in done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize(("architecture", "clusters"), [("sm_80", 0), ("sm_90a", 1)])
def test_the_same_kernels_compile_for_cards(
    tmp_path: Path, architecture: str, clusters: int
) -> None:
    command = ["nvcc", "-std=c++20", f"-arch={architecture}", "-Werror", "all-warnings"]
    command += ["-Xptxas", "-v", f"-DPLANTS_CLUSTERS={clusters}"]
    command += [f"-I{ROOT / name}" for name in ("cuda", "cpp/include")]
    command += [f"-I{FOLDER}", "-c", str(FOLDER / "plants.cu"), "-o", str(tmp_path / "plants.o")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    spills = re.findall(r"(\d+) bytes spill", done.stderr)
    assert spills and set(spills) == {"0"}, done.stderr
