"""Send valid and invalid requests from 50 clients at once to the webui's API, on a local server.

The server is a separate process: the stand-in webui of the tests with the extension, and uvicorn. The checks cover all
answers, the server's survival and its memory. Times are only printed, relative to one client in the same run.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import hnloader
from lab.faults._subjects import hypernetwork
from lab.faults._trials import Count, fresh

CLIENTS = 50
FILES = 1_000
MOST_GROWTH = 64 << 20  # bytes of the server's memory between the tenth and the last part of the time
PREFIX = "/hnloader/v1"
LOGIN, WRONG_LOGIN = ("Basic " + base64.b64encode(pair).decode() for pair in (b"ann:first", b"ann:wrong"))
ROOT = Path(__file__).parents[2]

Answer = dict[str, object]


@dataclass(frozen=True)
class Request:
    """A request with its expected statuses, and a check of answers with status 200."""

    method: str
    path: str
    statuses: tuple[int, ...] = (200,)
    check: Callable[[Answer], bool] = lambda answer: True
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    login: str | None = LOGIN


def random_request(client: int, numbers: random.Random) -> Request:
    """Return a random request; two of three are valid."""
    valid = numbers.randrange(1, FILES)
    valid += valid % 100 == 0
    own = json.dumps({"name": f"own {client}.pt", "on_existing": "skip"})
    good = (
        Request("GET", f"{PREFIX}/hypernetworks?search=style%20{valid}.pt", check=lambda a: a["total"] == 1),
        Request("GET", f"{PREFIX}/hypernetworks?limit=50&offset=100", check=lambda a: len(a["files"]) == 50),  # type: ignore
        Request("GET", f"{PREFIX}/inspect?name=style%20{valid}", check=lambda a: _is(a, valid)),
        Request("GET", f"{PREFIX}/inspect?name=style%20{valid - valid % 100}.pt", check=lambda a: bool(a["problem"])),
        Request("POST", f"{PREFIX}/convert", (200, 409), lambda a: a["file"] == f"own {client}.safetensors", own),
    )
    large = json.dumps({"name": "x" * 100_000})
    bad = (
        Request("GET", f"{PREFIX}/inspect?name=nothing", (404,)),
        Request("GET", f"{PREFIX}/inspect?name=..%2F..%2Fetc%2Fpasswd", (404,)),
        Request("GET", f"{PREFIX}/hypernetworks?limit=0", (422,)),
        Request("GET", f"{PREFIX}/hypernetworks", (401,), login=None),
        Request("POST", f"{PREFIX}/convert", (401,), body=own, login=WRONG_LOGIN),
        Request("POST", f"{PREFIX}/convert", (403,), body=own, headers={"Origin": "https://evil.example"}),
        Request("POST", f"{PREFIX}/convert", (413,), body=large),
        Request("POST", f"{PREFIX}/convert", (422,), body="{not json"),
        Request("POST", f"{PREFIX}/convert", (422,), body='{"name": "\\ud800"}'),
        Request("POST", f"{PREFIX}/convert", (409, 422), body='{"name": "style 100"}'),
        Request("DELETE", f"{PREFIX}/hypernetworks", (405,)),
        Request("GET", f"{PREFIX}/nothing", (404,)),
    )
    return numbers.choice(numbers.choice((good, good, bad)))


def _is(answer: Answer, number: int) -> bool:
    info = answer["info"]
    return answer["problem"] is None and isinstance(info, dict) and info["step"] == number % 10


@dataclass
class Results:
    """The results of clients: seconds of answers by success, counts of statuses, and failures."""

    seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def api(place: Path, rounds: int, seed: int) -> Count:
    """Run one client for a tenth of the time, then 50 for `rounds` x 6 seconds."""
    count = Count()
    folder = fresh(place)
    _fill(folder / "models" / "hypernetworks")
    port = _free_port()
    command = [sys.executable, "-m", "lab.faults.clients", str(folder), str(port)]
    with (folder / "log").open("w") as log, subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log) as server:
        try:
            _wait_for(port)
            alone = _together(1, rounds * 0.6, port, seed, lambda: None)
            memory: list[int] = []
            many = _together(CLIENTS, rounds * 6.0, port, seed, lambda: memory.append(_memory(server.pid)))
            lives = server.poll() is None
        finally:
            server.send_signal(signal.SIGKILL)
    count.endings["done"] = alone.statuses.total() + many.statuses.total()
    count.wrong += [*alone.wrong, *many.wrong]
    if not lives:
        count.wrong.append(f"the server exited: {(folder / 'log').read_text()[-2000:]}")
    if "Traceback" in (folder / "log").read_text():
        count.wrong.append(f"the server logged an error: {(folder / 'log').read_text()[-2000:]}")
    early = memory[len(memory) // 10]
    if memory[-1] - early > MOST_GROWTH:
        count.wrong.append(f"the server's memory grew from {early >> 20} to {memory[-1] >> 20} MiB")
    count.notes += _summary(alone, many, memory)
    return count


def _summary(alone: Results, many: Results, memory: list[int]) -> list[str]:
    lines = []
    for name, results in (("one client", alone), (f"{CLIENTS} clients", many)):
        statuses = ", ".join(f"{number:,} of {status}" for status, number in sorted(results.statuses.items()))
        lines.append(f"{name}: {results.statuses.total():,} answers: {statuses}")
    for good, what in ((True, "answers with 200"), (False, "refusals")):
        if min(len(results.seconds[good]) for results in (alone, many)) < 20:
            continue  # too few for quantiles
        cuts = [quantiles(results.seconds[good], n=100) for results in (alone, many)]
        ratios = [f"{name} {cuts[1][at] / cuts[0][at]:.1f}" for name, at in (("median", 49), ("95 of 100", 94))]
        longest = max(many.seconds[good]) / max(alone.seconds[good])
        lines.append(f"time of {what}, {CLIENTS} clients to one: {', '.join(ratios)}, longest {longest:.1f}")
    marks = [memory[len(memory) * part // 10] for part in range(0, 10, 3)] + [memory[-1]]
    lines.append(f"the server's memory over the time: {', '.join(f'{mark >> 20}' for mark in marks)} MiB")
    return lines


def _fill(folder: Path) -> None:
    """Write 1,000 small files, one of 100 truncated, and one for each client to convert."""
    folder.mkdir(parents=True)
    for number in range(10):
        hnloader.save(hypernetwork(number, 8), folder / f"style {number}.pt")
    valid = [(folder / f"style {number}.pt").read_bytes() for number in range(10)]
    for number in range(FILES):
        (folder / f"style {number}.pt").write_bytes(valid[number % 10] if number % 100 else valid[0][:200])
    for client in range(CLIENTS):
        (folder / f"own {client}.pt").write_bytes(valid[client % 10])


def _together(clients: int, seconds: float, port: int, seed: int, each_second: Callable[[], None]) -> Results:
    results, end = Results(), time.monotonic() + seconds
    threads = [threading.Thread(target=_client, args=(number, end, port, seed, results)) for number in range(clients)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        time.sleep(min(1.0, seconds / 20))
        each_second()
    for thread in threads:
        thread.join()
    return results


def _client(number: int, end: float, port: int, seed: int, results: Results) -> None:
    """Send requests until the time is up. Threads may share Python's lists and counters."""
    numbers = random.Random(f"{seed} {number}")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    while time.monotonic() < end and len(results.wrong) < 20:
        request = random_request(number, numbers)
        try:
            wrong = _ask(connection, request, results)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            wrong = repr(error)
            connection.close()
        if wrong:
            results.wrong.append(f"{request.method} {request.path} {str(request.body)[:60]}: {wrong}"[:500])
    connection.close()


def _ask(connection: http.client.HTTPConnection, request: Request, results: Results) -> str:
    """Send a request and return the fault of its answer, or an empty string."""
    headers = {"Content-Type": "application/json", **request.headers}
    if request.login is not None:
        headers["Authorization"] = request.login
    began = time.monotonic()
    connection.request(request.method, request.path, request.body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    results.seconds[answer.status == 200].append(time.monotonic() - began)
    results.statuses[answer.status] += 1
    if answer.status not in request.statuses:
        return f"{answer.status}: {text}"
    if "hypernetworks/" in text:
        return f"the answer has a path: {text}"
    return "" if answer.status != 200 or request.check(json.loads(text)) else text


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(3_000):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"The server does not listen on port {port}.")


def _memory(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def serve(folder: Path, port: int) -> None:
    """Run the stand-in webui with the extension in this process until it is killed."""
    import uvicorn
    from fastapi import FastAPI

    from tests.support.standins.webui import running

    with running(folder) as webui:
        webui.install()
        webui.start()
        webui.shared.cmd_opts.api_auth = "ann:first"
        app = FastAPI()
        webui.part("script_callbacks").run("app_started", None, app)
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
