"""Setup of the whole suite."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from installed import editable, outside, regular, wheels  # noqa: F401 - fixtures

# The verdict depends on the code alone: the same examples in every run. `thorough` looks for more.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=150)
settings.register_profile("quick", settings.get_profile("default"), max_examples=20)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile("default")


# Temporary files and matplotlib's cache stay in the checkout. A pytest that a test starts makes
# folders of its own beside this one's.
_FILES = Path(__file__).parents[1] / "build" / "tests"
_FILES.mkdir(parents=True, exist_ok=True)
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_FILES))
os.environ.setdefault("MPLCONFIGDIR", str(_FILES / "matplotlib"))


# Beside other tests, NumPy's own threads would mostly wait for one another, which takes processors.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


# A shell without job control starts what it puts in the background with Ctrl-C ignored, and the
# programs that tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# The tests of a group run one after another, in one process: they measure the machine or use all
# of it, or share what takes minutes to build. By file: pytest-xdist's own groups, which are marks,
# have no effect from pytest 9.2 on.
_MACHINE = (
    "bench",
    "bench_one_process",
    "executors",
    "memory",
    "out_of_memory",
    "processors",
    "scaling",
    "threads",
)
_GROUPS = {
    "test_cpp.py": "cpp",
    "test_installed.py": "installed",
    "test_registry.py": "installed",
    "test_torchrun.py": "torchrun",
    **{f"test_{name}.py": "machine" for name in _MACHINE},
}
# The longest, begun first: no process is then left with one of them when the others are done.
_FIRST = ("test_cuda.py", "test_cuda_build.py", "test_devices.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The processes' tests one by one, but for groups, which stay together."""
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0].rpartition("/")[2]
            return _GROUPS.get(file, nodeid)

    return Grouped(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail if any test is skipped")
    parser.addoption(
        "--device",
        default="cpu",
        help="where networks are that ask for the CPU: cuda, or emulated, which is built first",
    )
    parser.addoption("--emulated", metavar="FOLDER", help="use what is built there of tests/cuda")


def pytest_configure(config: pytest.Config) -> None:
    name: str = config.getoption("--device")
    if name == "cpu":
        return
    import devices

    if name == devices.NAME:
        if config.option.emulated is None:  # not in the workers of pytest-xdist
            config.option.emulated = str(devices.build(devices.MODULE))
        devices.register(Path(config.option.emulated))
    devices.in_place_of_the_cpu(name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _FIRST)
    name: str = config.getoption("--device")
    for item in items if name != "cpu" else ():
        if (mark := item.get_closest_marker("host")) is not None:
            item.add_marker(pytest.mark.skip(reason=f"of the CPU alone: {mark.args[0]}"))


@pytest.fixture(scope="session")
def emulator(request: pytest.FixtureRequest) -> Path:
    """The folder of what tests/cuda builds, without a sanitizer."""
    import devices

    if (folder := request.config.getoption("--emulated")) is not None:
        return Path(folder).resolve()
    return devices.build()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker, whose tests are counted where it was started
        return
    if session.config.getoption("--no-skips") and exitstatus == 0 and "skipped" in reporter.stats:
        reporter.write_line("\nfailed: --no-skips was given and tests were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def threads() -> Iterator[None]:
    """Shares out work of any size, so that small cases run on all threads; puts both back."""
    import charrnn_fast as cf
    from charrnn_fast import _core

    before = cf.get_num_threads()
    _core.set_sharing_limits(0, 0)
    yield
    _core.set_sharing_limits(1e6, 1e5)
    cf.set_num_threads(before)
