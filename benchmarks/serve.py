"""Load on `charrnn-fast serve`, by wrk: 64 clients that ask again as soon as they are answered.

    apt-get install wrk
    python benchmarks/serve.py --markdown benchmarks/results/serve.md

The model is an LSTM of 2 x 512 with random weights, which take as long as trained ones; a request
is for 500 characters. In each round the server answers whole texts, then streams of events, and
then the same 64 texts are drawn by `CharLM.sample` in this process, as `sample --num-samples 64`
draws them. Characters of requests that wrk has not seen end do not count. At the end the server is
killed under load, and started again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import statistics
import string
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn

import charrnn_fast as cf
from charrnn_fast.bench.machine import facts
from charrnn_fast.storage import atomic_file

CLIENTS, LENGTH = 64, 500
VOCABULARY = 65
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_SCRIPT = """wrk.method = "POST"
wrk.path = "/v1/sample"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"length": %d, "stream": %s}'

local threads = {}
function setup(thread) table.insert(threads, thread) end

unfinished = 0
function response(status, headers, body)  -- a stream that fails has status 200, too
  if not string.find(body, '"reason":"length"', 1, true) then unfinished = unfinished + 1 end
end

function done(summary, latency, requests)
  local total = 0
  for _, thread in ipairs(threads) do total = total + thread:get("unfinished") end
  io.write("Unfinished: " .. total .. "\\n")
end
"""


class Load(NamedTuple):
    """rate: characters per second; the latencies of whole answers in seconds."""

    rate: float
    requests: int
    median: float
    p99: float
    errors: int


class Server:
    def __init__(self, model: Path, port: int = 0) -> None:
        command = [sys.executable, "-m", "charrnn_fast", "serve", str(model), "--port", str(port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()
        line = self._process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line
        self.port = int(found[1])

    def end(self, number: signal.Signals) -> int:
        self._process.send_signal(number)
        self._process.communicate()
        return self._process.returncode

    def draw(self, seed: int) -> str:
        body = json.dumps({"length": LENGTH, "seed": seed}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/sample",
            body,
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            text: str = json.loads(answer.read())["texts"][0]["text"]
        return text


def wrk(folder: Path, port: int, seconds: float, streamed: bool) -> subprocess.Popen[str]:
    script = folder / "request.lua"
    script.write_text(_SCRIPT % (LENGTH, "true" if streamed else "false"))
    options = [f"-c{CLIENTS}", "-t1", f"-d{seconds:.0f}s", "--timeout", "60s", "--latency"]
    command = ["wrk", *options, "-s", str(script), f"http://127.0.0.1:{port}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def loaded(folder: Path, port: int, seconds: float, streamed: bool) -> Load:
    output, _ = wrk(folder, port, seconds, streamed).communicate()
    found = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", output)
    assert found, output
    requests, took = int(found[1]), float(found[2]) * _SECONDS[found[3]]
    errors = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", output)))
    errors += sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", output)))
    unfinished = re.search(r"^Unfinished: (\d+)$", output, re.MULTILINE)
    assert unfinished, output
    errors += int(unfinished[1])
    return Load(
        requests * LENGTH / took, requests, latency(output, 50), latency(output, 99), errors
    )


def latency(output: str, share: int) -> float:
    found = re.search(rf"^ *{share}% +([\d.]+)(us|ms|s|m) *$", output, re.MULTILINE)
    assert found, output
    return float(found[1]) * _SECONDS[found[2]]


def sample_rate(model: cf.CharLM) -> float:
    """Characters per second of the 64 texts, drawn together."""
    begin = time.perf_counter()
    model.sample(LENGTH, seeds=range(CLIENTS))
    return CLIENTS * LENGTH / (time.perf_counter() - begin)


def survives(folder: Path, path: Path, model: cf.CharLM) -> bool:
    """Whether a server that is killed under load starts again at its port, with the same texts."""
    server = Server(path)
    clients = wrk(folder, server.port, 6, True)
    time.sleep(3)
    server.end(signal.SIGKILL)
    again = Server(path, server.port)
    same = again.draw(7) == model.sample(LENGTH, seed=7)
    clients.communicate()
    return again.end(signal.SIGTERM) == 0 and same


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="of wrk in each round, twice")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--markdown", metavar="FILE")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not on the PATH: apt-get install wrk")
    if arguments.markdown:
        atomic_file.check(arguments.markdown)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "model.safetensors"
        vocabulary = cf.Vocabulary.from_text(string.printable[:VOCABULARY])
        model = cf.CharLM(vocabulary, arguments.hidden_size, 2)
        model.save(path)
        sample_rate(model)
        whole, streamed, alone = [], [], []
        server = Server(path)
        try:
            for _ in range(arguments.rounds):
                whole.append(loaded(folder, server.port, arguments.seconds, False))
                streamed.append(loaded(folder, server.port, arguments.seconds, True))
                alone.append(statistics.median(sample_rate(model) for _ in range(5)))
                print(whole[-1], streamed[-1], f"sample: {alone[-1]:,.0f}", sep="\n", flush=True)
            same = server.draw(7) == model.sample(LENGTH, seed=7)
        finally:
            ended = server.end(signal.SIGTERM)
        killed = survives(folder, path, model)
    text = report(arguments.hidden_size, whole, streamed, alone)
    text += (
        f"\nAfter the load the server drew {'the' if same else 'NOT the'} text of `CharLM.sample`, "
        f"and ended with status {ended} at SIGTERM. Killed under load (-9), it "
        f"{'served' if killed else 'did NOT serve'} the same texts again at the same port.\n"
    )
    print(text)
    if arguments.markdown:
        atomic_file.replace(arguments.markdown, [text.encode()])
    errors = sum(load.errors for load in [*whole, *streamed])
    return int(not (same and killed and ended == 0 and errors == 0))


def report(size: int, whole: list[Load], streamed: list[Load], alone: list[float]) -> str:
    machine = facts()
    version = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    rows = []
    for label, loads in (("whole answers", whole), ("server-sent events", streamed)):
        shares = [load.rate / rate for load, rate in zip(loads, alone, strict=True)]
        rows.append(
            f"| {label} | {median(loads, 'rate'):,.0f} | {statistics.median(shares):.2f} "
            f"({min(shares):.2f} to {max(shares):.2f}) | {median(loads, 'median'):.2f} s | "
            f"{median(loads, 'p99'):.2f} s | {sum(load.requests for load in loads):,} | "
            f"{sum(load.errors for load in loads)} |"
        )
    return f"""# Load on the server

{machine["cores"]} cores of an {machine["processor"]}, {machine["isa"]}, commit {machine["commit"]},
uvicorn {uvicorn.__version__}, {version.split(" Copyright")[0].strip()}, which runs on the same
cores. Written by `python benchmarks/serve.py --markdown benchmarks/results/serve.md`.

LSTM of 2 x {size}, random weights, {VOCABULARY} characters; {CLIENTS} clients,
{LENGTH} characters a request. `CharLM.sample` draws the {CLIENTS} texts at
{statistics.median(alone):,.0f} characters/s. The medians of {len(whole)} rounds, in turns:

| | characters/s | over those of `sample` | median latency | p99 | requests | errors |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""


def median(loads: list[Load], name: str) -> float:
    values: list[Any] = [getattr(load, name) for load in loads]
    return float(statistics.median(values))


if __name__ == "__main__":
    sys.exit(main())
