"""`python -m benchmarks.page RUN`: the interactive page under load, on this machine alone.

Clients that each upload an image of their own and then move sliders at once; the answer is the whole of the first tab.
The load is repeated, so that memory that grows with the number of answers shows. Wall-clock times depend on what else
the machine does; the processor's time of an answer hardly does.
"""

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from iwm.runtime import devices, files
from iwm.runtime.console import console, table

SECONDS = 60.0
"""The longest wait for an answer, and for the page to start."""


@dataclass(frozen=True)
class Server:
    """A running page."""

    address: str
    process: int

    def ask(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        """The answer to a question. Raises OSError where there is none."""
        request = urllib.request.Request(f"{self.address}/api/{path}", body)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)

    def imagine(self, key: str, action: dict[str, float]) -> float:
        """Seconds of one answer of the first tab."""
        start = time.perf_counter()
        answer = self.ask("imagine", json.dumps({"image": key, "action": action}).encode())
        assert answer["pictures"]["truth"]
        return time.perf_counter() - start

    @property
    def memory(self) -> int:
        """Bytes that the process holds."""
        status = Path(f"/proc/{self.process}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the process so far."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(run: str, *options: str) -> Iterator[Server]:
    """`iwm app RUN` at a free port, ended with the block."""
    command = [sys.executable, "-m", "iwm.cli", "app", run, "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        address = next((word for word in words if word.startswith("http://")), None)
        if address is None:
            raise RuntimeError(f"iwm app did not start: {' '.join(words)}")
        yield Server(address, process.pid)
    finally:
        process.terminate()
        process.wait(SECONDS)


def picture(seed: int) -> bytes:
    """A photo-sized JPEG of coloured patches."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((1024, 768), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def client(server: Server, seed: int, requests: int) -> tuple[list[float], list[str]]:
    """Seconds of the answers, and what went wrong, of one client that moves its sliders."""
    draw, times, errors = random.Random(seed), [], []
    try:
        key = server.ask("images", picture(seed))["key"]
        sliders = [slider for slider in server.ask("world")["sliders"] if slider["graded"]]
    except OSError as error:
        return [], [str(error)]
    for _ in range(requests):
        try:
            action = {slider["name"]: draw.uniform(slider["low"], slider["high"]) for slider in sliders}
            times.append(server.imagine(key, action))
        except OSError as error:
            errors.append(str(error))
    return times, errors


def load(server: Server, clients: int, requests: int, start: int) -> dict[str, float]:
    """One round of the load: clients with images of their own, all at once."""
    cpu, began = server.cpu_seconds, time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        results = list(threads.map(lambda number: client(server, start + number, requests), range(clients)))
    times = sorted(second for one, _ in results for second in one)
    errors = sum(len(one) for _, one in results)
    taken = time.perf_counter() - began
    return {
        "answers": len(times),
        "errors": errors,
        "answers_per_second": len(times) / taken,
        "median_ms": 1e3 * statistics.median(times),
        "p95_ms": 1e3 * times[int(0.95 * (len(times) - 1))],
        "cpu_ms_per_answer": 1e3 * (server.cpu_seconds - cpu) / len(times),
        "memory_mb": server.memory / 1e6,
    }


def first_answer(server: Server) -> dict[str, float]:
    """The first answer for an image that was just uploaded, whose bank is not encoded; and one when it is."""
    key = server.ask("images", picture(10_000))["key"]
    cpu = server.cpu_seconds
    first = server.imagine(key, {})
    first_cpu = server.cpu_seconds - cpu
    time.sleep(5)
    cpu = server.cpu_seconds
    later = [server.imagine(key, {}) for _ in range(20)]
    return {
        "first_answer_ms": 1e3 * first,
        "first_answer_cpu_ms": 1e3 * first_cpu,
        "later_answer_ms": 1e3 * statistics.median(later),
        "later_answer_cpu_ms": 1e3 * (server.cpu_seconds - cpu) / len(later),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description="The page under load.")
    parser.add_argument("run", nargs="?", default="demo")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=50, help="answers of a client")
    parser.add_argument("--rounds", type=int, default=5, help="the whole load again, to see whether memory grows")
    parser.add_argument("--data", default="sample")
    parser.add_argument("--threads", type=int, default=0, help="of the server; 0: all cores")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    options = ("--data", given.data, "--speed.threads", str(given.threads))
    with serving(given.run, *options) as server:
        deadline = time.monotonic() + 10 * SECONDS
        while (world := server.ask("world"))["encoded"] < world["total"]:
            assert time.monotonic() < deadline, "the images are not encoded in ten minutes"
            time.sleep(1)
        once = {"memory_mb_before": server.memory / 1e6, **first_answer(server)}
        rounds = [load(server, given.clients, given.requests, number * given.clients) for number in range(given.rounds)]
    console.print(table("one client", ["", ""], [[name, f"{value:.0f}"] for name, value in once.items()]))
    heads = ["", *(f"round {number + 1}" for number in range(len(rounds)))]
    console.print(table("load", heads, [[name, *(f"{one[name]:.0f}" for one in rounds)] for name in rounds[0]]))
    what = {"clients": given.clients, "requests": given.requests, "hardware": devices.describe()}
    files.write_text(given.out / "page.json", json.dumps(files.plain({**what, **once, "rounds": rounds}), indent=1))
    if any(one["errors"] for one in rounds):
        sys.exit("there were errors")


if __name__ == "__main__":
    main()
