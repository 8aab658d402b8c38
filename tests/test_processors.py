"""Few processors, oversubscription and CPU quotas: the same bits, and no hang. Which processors
workers run on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from charrnn_fast import _core

# Trains both ways of sharing work out, by streams and by units, and prints what came of it.
PROGRAM = """
import hashlib, os, sys
from pathlib import Path
early, late, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
exec(early)
import numpy as np
import charrnn_fast as cf
exec(late)
if threads:
    cf.set_num_threads(threads)
digest = hashlib.sha256()
for cell, batch, hidden in (("lstm", 32, 64), ("gru", 2, 256)):
    rnn = cf.RNN(20, hidden, 20, cell=cell, num_layers=2)
    optimizer = cf.optim.Adam(rnn)
    tokens = np.random.default_rng(0).integers(0, 20, (9, 20, batch))
    for step in range(8):
        y, _ = rnn.forward(tokens[step])
        optimizer.step(rnn.backward(cf.cross_entropy(y, tokens[step + 1])[1])[2])
    digest.update(b"".join(p.tobytes() for p in rnn.parameters().values()))
print(cf.get_num_threads(), digest.hexdigest())
"""


def _train(threads: int = 0, early: str = "pass", late: str = "pass") -> list[str]:
    """The number of threads and the digest; `early` and `late` are run before and after import."""
    environment = {k: v for k, v in os.environ.items() if k != "CHARRNN_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, early, late, str(threads)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def alone() -> str:
    """The digest of one thread."""
    return _train(1)[1]


@contextmanager
def hog(processor: int) -> Iterator[None]:
    """Another program that takes all the time it gets on a processor."""
    program = f"import os; os.sched_setaffinity(0, {{{processor}}})\nwhile True: pass"
    burning = subprocess.Popen([sys.executable, "-S", "-c", program])
    try:
        yield
    finally:
        burning.kill()
        burning.wait()


needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the system has no affinity"
)


@pytest.mark.parametrize("threads", [2, 8])
def test_more_threads_than_processors(threads: int, alone: str) -> None:
    assert _train(threads) == [str(threads), alone]


@needs_affinity
@pytest.mark.parametrize("threads", [2, 8])
def test_a_processor_taken_by_another_program(threads: int, alone: str) -> None:
    with hog(max(os.sched_getaffinity(0))):
        assert _train(threads) == [str(threads), alone]


@needs_affinity
def test_one_processor_and_four_threads(alone: str) -> None:
    """Pinned from the start or after the import, when the pool believes that it has more."""
    pin = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    assert _train(4, early=pin) == ["4", alone]
    assert _train(4, late=pin) == ["4", alone]
    assert _train(0, early=pin) == ["1", alone]


# What a program on several processors sees of its workers. A worker may run on the processor of a
# caller that has gone to sleep, so each look comes after a call of its own.
WORKERS = """
import os, sys, time
early, late, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
exec(early)
from charrnn_fast import _core
_core.set_sharing_limits(0, 0)
_core.set_num_threads(threads)
before = set(os.listdir("/proc/self/task"))
_core.pool_self_test(1)
workers = sorted(int(t) for t in set(os.listdir("/proc/self/task")) - before)
assert len(workers) == threads - 1, workers
def affinities():
    _core.pool_self_test(1)
    return [os.sched_getaffinity(worker) for worker in workers]
def wait_for(expected):
    deadline = time.monotonic() + 30
    while (found := affinities()) != expected and time.monotonic() < deadline:
        time.sleep(0.001)
    assert found == expected, (found, expected)
def set_for_all_threads(processors):  # as taskset -a does
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), processors)
every = sorted(os.sched_getaffinity(0))
exec(late)
print("done")
"""


def _watch(threads: int, late: str, early: str = "pass") -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, early, late, str(threads)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "done\n", done.stderr


needs_two_processors = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two processors and affinity",
)


@needs_two_processors
def test_workers_are_kept_off_the_processor_of_their_caller() -> None:
    _watch(
        2,
        """
for processor in every[0], every[1], every[0]:
    os.sched_setaffinity(0, {processor})
    wait_for([set(every) - {processor}])
""",
    )


@needs_affinity
def test_workers_of_a_process_on_one_processor_stay_there() -> None:
    _watch(
        3,
        "assert affinities() == [set(every)] * 2 and len(every) == 1",
        early="os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})",
    )


@needs_two_processors
def test_workers_go_where_a_process_is_sent_while_it_runs() -> None:
    _watch(
        2,
        """
for processor in every[0], every[1]:
    os.sched_setaffinity(0, {processor})
    wait_for([set(every) - {processor}])
    set_for_all_threads({processor})
    for _ in range(20):
        assert affinities() == [{processor}]
        time.sleep(0.002)
    set_for_all_threads(every)
    for _ in range(20):  # the caller's affinity is looked at from time to time
        affinities()
        time.sleep(0.002)
""",
    )


@contextmanager
def control_group(quota_percent: int) -> Iterator[Path]:
    """A control group of either version with so much of one processor, for processes to join."""
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    parent = v1 if v1.is_dir() else v2
    group = parent / f"charrnn_fast_test_{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            if parent == v1:
                (group / "cpu.cfs_quota_us").write_text(f"{quota_percent * 1000}")
            else:
                (group / "cpu.max").write_text(f"{quota_percent * 1000} 100000")
        except OSError as error:
            pytest.skip(f"control groups set no quota here: {error}")
        yield group
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:  # a process that has just ended may still be in it
                time.sleep(0.05)


@pytest.mark.parametrize("threads", [0, 2, 8])
def test_a_quota(threads: int, alone: str) -> None:
    """60 % of a processor for a group of ours: one thread is the default, more do as well."""
    with control_group(60) as group:
        join = f"Path({str(group / 'cgroup.procs')!r}).write_text('0')"
        assert _train(threads, early=join) == [str(threads or 1), alone]


V1 = "31 23 0:28 {top} {point} rw,relatime shared:9 master:1 - cgroup cgroup rw,{controllers}\n"
V2 = "41 31 0:38 {top} {point} rw,relatime - cgroup2 cgroup2 rw\n"


def _fake(root: Path, mounts: str, groups: str, files: dict[str, str]) -> float:
    """The quota under a made-up /proc and /sys."""
    contents = {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups, **files}
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return _core.cgroup_quota(str(root))


V2_AT = V2.format(top="/", point="/sys/fs/cgroup")
V1_AT = V1.format(top="/", point="/sys/fs/cgroup/cpu,cpuacct", controllers="cpu,cpuacct")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"a/b/cpu.max": "max 100000\n"}, math.inf),
        ({"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "300000 100000\n"}, 3.0),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ({"a/b/cpu.max": "20000 10000\n", "a/cpu.max": "400000 100000\n"}, 2.0),
        ({"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "250000 100000\n"}, 2.5),
        ({"a/c/cpu.max": "50000 100000\n", "a/b/c/cpu.max": "50000 100000\n"}, math.inf),
        ({"a/b/cpu.max": "\n"}, math.inf),
        ({"a/b/cpu.max": "0 100000\n"}, math.inf),
    ],
)
def test_version_2_counts_the_own_group_and_those_around_it(
    tmp_path: Path, files: dict[str, str], expected: float
) -> None:
    tree = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    assert _fake(tmp_path, V2_AT, "0::/a/b\n", tree) == expected


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        ({}, math.inf),
        ({"a/b": -1, "a": -1, "": -1}, math.inf),
        ({"a/b": 150000, "a": -1, "": -1}, 1.5),
        ({"a/b": -1, "a": 50000}, 0.5),
        ({"a/b": 300000, "": 200000}, 2.0),
    ],
)
def test_version_1_counts_the_own_group_and_those_around_it(
    tmp_path: Path, quotas: dict[str, int], expected: float
) -> None:
    tree = {}
    for group, quota in quotas.items():
        folder = f"sys/fs/cgroup/cpu,cpuacct/{group}"
        tree[f"{folder}/cpu.cfs_quota_us"] = f"{quota}\n"
        tree[f"{folder}/cpu.cfs_period_us"] = "100000\n"
    groups = "12:cpuset:/x\n4:cpu,cpuacct:/a/b\n1:name=systemd:/cpu\n0::/y\n"
    assert _fake(tmp_path, V1_AT, groups, tree) == expected


def test_a_container_that_sees_its_own_group_only(tmp_path: Path) -> None:
    """Without a namespace of groups, the file names the host's path; the mount shows its end."""
    mounts = V1.format(top="/docker/a1", point="/sys/fs/cgroup/cpu", controllers="cpu")
    tree = {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
    }
    for group, expected in (("/docker/a1", 2.5), ("/docker/a1/x", 0.5), ("/docker/a12", 2.5)):
        assert _fake(tmp_path, mounts, f"4:cpu:{group}\n", tree) == expected


def test_a_group_outside_of_its_namespace(tmp_path: Path) -> None:
    tree = {"sys/fs/cgroup/cpu.max": "250000 100000\n", "sys/fs/x/cpu.max": "1000 100000\n"}
    assert _fake(tmp_path, V2_AT, "0::/../x\n", tree) == 2.5


def test_both_versions_at_once_and_blanks_in_paths(tmp_path: Path) -> None:
    mounts = V1.format(top="/", point="/a\\040b/cpu", controllers="cpu")
    mounts += V1.format(top="/", point="/cpuset", controllers="cpuset")
    mounts += V2.format(top="/", point="/unified")
    groups = "3:cpuset:/\n1:cpu:/one\n0::/two\n"
    tree = {
        "a b/cpu/one/cpu.cfs_quota_us": "300000\n",
        "a b/cpu/one/cpu.cfs_period_us": "100000\n",
        "cpuset/cpu.cfs_quota_us": "10000\n",
        "cpuset/cpu.cfs_period_us": "100000\n",
    }
    assert _fake(tmp_path, mounts, groups, tree) == 3.0
    tree["unified/two/cpu.max"] = "200000 100000\n"
    assert _fake(tmp_path, mounts, groups, tree) == 2.0


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n", " - \n", "1 2 3 4 5 - cgroup2\n::\n"])
def test_files_that_say_nothing_set_no_limit(tmp_path: Path, text: str) -> None:
    assert _fake(tmp_path, text, text, {}) == math.inf
    assert _core.cgroup_quota(str(tmp_path / "nowhere")) == math.inf
