"""Fifty clients of the webui's API at once, with good and bad requests, against a real server on this computer.

The server is a process of its own: the stand-in webui of the tests with the extension, and uvicorn. Every answer is
compared with what it has to be. What is judged are answers, the server's life and its memory; how long answers take is
printed as a ratio to one client alone, in the same run.
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
LOGIN = "Basic " + base64.b64encode(b"ann:first").decode()
ROOT = Path(__file__).parents[2]

Answer = dict[str, object]


@dataclass(frozen=True)
class Asked:
    """One kind of request: what is sent, which statuses are right, and what must hold of an answer with 200."""

    method: str
    path: str
    statuses: tuple[int, ...] = (200,)
    right: Callable[[Answer], bool] = lambda answer: True
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    login: str | None = LOGIN


def requests(client: int, numbers: random.Random) -> Asked:
    """A request drawn at random: two of three are good ones."""
    sound = numbers.randrange(1, FILES)
    sound += sound % 100 == 0
    own = json.dumps({"name": f"own {client}.pt", "on_existing": "skip"})
    good = (
        Asked("GET", f"{PREFIX}/hypernetworks?search=style%20{sound}.pt", right=lambda a: a["total"] == 1),
        Asked("GET", f"{PREFIX}/hypernetworks?limit=50&offset=100", right=lambda a: len(a["files"]) == 50),  # type: ignore
        Asked("GET", f"{PREFIX}/inspect?name=style%20{sound}", right=lambda a: _is(a, sound)),
        Asked("GET", f"{PREFIX}/inspect?name=style%20{sound - sound % 100}.pt", right=lambda a: bool(a["problem"])),
        Asked("POST", f"{PREFIX}/convert", (200, 409), lambda a: a["file"] == f"own {client}.safetensors", own),
    )
    large = json.dumps({"name": "x" * 100_000})
    bad = (
        Asked("GET", f"{PREFIX}/inspect?name=nothing", (404,)),
        Asked("GET", f"{PREFIX}/inspect?name=..%2F..%2Fetc%2Fpasswd", (404,)),
        Asked("GET", f"{PREFIX}/hypernetworks?limit=0", (422,)),
        Asked("GET", f"{PREFIX}/hypernetworks", (401,), login=None),
        Asked("POST", f"{PREFIX}/convert", (401,), body=own, login="Basic " + base64.b64encode(b"ann:wrong").decode()),
        Asked("POST", f"{PREFIX}/convert", (403,), body=own, headers={"Origin": "https://evil.example"}),
        Asked("POST", f"{PREFIX}/convert", (413,), body=large),
        Asked("POST", f"{PREFIX}/convert", (422,), body="{not json"),
        Asked("POST", f"{PREFIX}/convert", (422,), body='{"name": "\\ud800"}'),
        Asked("POST", f"{PREFIX}/convert", (409, 422), body='{"name": "style 100"}'),
        Asked("DELETE", f"{PREFIX}/hypernetworks", (405,)),
        Asked("GET", f"{PREFIX}/nothing", (404,)),
    )
    return numbers.choice(numbers.choice((good, good, bad)))


def _is(answer: Answer, number: int) -> bool:
    info = answer["info"]
    return answer["problem"] is None and isinstance(info, dict) and info["step"] == number % 10


@dataclass
class Told:
    """What clients saw: seconds of answers with 200 and of refusals, how often each status came, what was wrong."""

    seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def api(place: Path, rounds: int, seed: int) -> Count:
    """One client for a tenth of the time, then 50 for `rounds` x 6 seconds, ten minutes by default."""
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
        count.wrong.append(f"the server has ended: {(folder / 'log').read_text()[-2000:]}")
    if "Traceback" in (folder / "log").read_text():
        count.wrong.append(f"the server told of an error: {(folder / 'log').read_text()[-2000:]}")
    early = memory[len(memory) // 10]
    if memory[-1] - early > MOST_GROWTH:
        count.wrong.append(f"the server's memory grew from {early >> 20} to {memory[-1] >> 20} MiB")
    count.notes += _told(alone, many, memory)
    return count


def _told(alone: Told, many: Told, memory: list[int]) -> list[str]:
    lines = []
    for name, told in (("one client", alone), (f"{CLIENTS} clients", many)):
        statuses = ", ".join(f"{number:,} of {status}" for status, number in sorted(told.statuses.items()))
        lines.append(f"{name}: {told.statuses.total():,} answers: {statuses}")
    for good, what in ((True, "answers with 200"), (False, "refusals")):
        if min(len(told.seconds[good]) for told in (alone, many)) < 20:
            continue  # too short a run to tell
        cuts = [quantiles(told.seconds[good], n=100) for told in (alone, many)]
        ratios = [f"{name} {cuts[1][at] / cuts[0][at]:.1f}" for name, at in (("median", 49), ("95 of 100", 94))]
        longest = max(many.seconds[good]) / max(alone.seconds[good])
        lines.append(f"time of {what}, {CLIENTS} clients to one: {', '.join(ratios)}, longest {longest:.1f}")
    marks = [memory[len(memory) * part // 10] for part in range(0, 10, 3)] + [memory[-1]]
    lines.append(f"the server's memory over the time: {', '.join(f'{mark >> 20}' for mark in marks)} MiB")
    return lines


def _fill(folder: Path) -> None:
    """1,000 small files, of which each hundredth is broken, and one for each client to convert."""
    folder.mkdir(parents=True)
    for number in range(10):
        hnloader.save(hypernetwork(number, 8), folder / f"style {number}.pt")
    sound = [(folder / f"style {number}.pt").read_bytes() for number in range(10)]
    for number in range(FILES):
        (folder / f"style {number}.pt").write_bytes(sound[number % 10] if number % 100 else sound[0][:200])
    for client in range(CLIENTS):
        (folder / f"own {client}.pt").write_bytes(sound[client % 10])


def _together(clients: int, seconds: float, port: int, seed: int, each_second: Callable[[], None]) -> Told:
    told, end = Told(), time.monotonic() + seconds
    threads = [threading.Thread(target=_client, args=(number, end, port, seed, told)) for number in range(clients)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        time.sleep(min(1.0, seconds / 20))
        each_second()
    for thread in threads:
        thread.join()
    return told


def _client(number: int, end: float, port: int, seed: int, told: Told) -> None:
    """Asks again and again; lists and counters of Python may be added to from several threads."""
    numbers = random.Random(f"{seed} {number}")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    while time.monotonic() < end and len(told.wrong) < 20:
        asked = requests(number, numbers)
        try:
            wrong = _ask(connection, asked, told)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            wrong = repr(error)
            connection.close()
        if wrong:
            told.wrong.append(f"{asked.method} {asked.path} {str(asked.body)[:60]}: {wrong}"[:500])
    connection.close()


def _ask(connection: http.client.HTTPConnection, asked: Asked, told: Told) -> str:
    """Send it; gives what is wrong with the answer, or ""."""
    headers = {"Content-Type": "application/json", **asked.headers}
    if asked.login is not None:
        headers["Authorization"] = asked.login
    began = time.monotonic()
    connection.request(asked.method, asked.path, asked.body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    told.seconds[answer.status == 200].append(time.monotonic() - began)
    told.statuses[answer.status] += 1
    if answer.status not in asked.statuses:
        return f"{answer.status}: {text}"
    if "hypernetworks/" in text:
        return f"it says where files lie: {text}"
    return "" if answer.status != 200 or asked.right(json.loads(text)) else text


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
    raise TimeoutError("the server does not begin to listen")


def _memory(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def serve(folder: Path, port: int) -> None:
    """The stand-in webui with the extension in this process, until it is killed."""
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
