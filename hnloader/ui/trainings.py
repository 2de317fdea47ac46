"""Trainings that the page starts: each a process of its own, `hnloader train`, which goes on when the page is closed.

Each has a folder below one that all share:

    NAME/config.yaml      what it is told
    NAME/NAME.pt          what comes out, NAME.training beside it with states, previews and status.json
    NAME/log.txt          what it printed
    lock, job.json        held by the one that runs, and which that is

The process inherits the open lock, so that it is held for as long as the process lives, whoever started it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnloader.conversion.planning import numbered
from hnloader.errors import HypernetworkError
from hnloader.files import check_room, expanded, lock_file, make_folder, open_regular, read_regular, replacing
from hnloader.texts import shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"[\w][\w .()+-]{0,63}")
_NEEDED = ("diffusers", "transformers", "accelerate", "safetensors", "torch", "numpy", "yaml", "PIL", "typer", "rich")
_PACKAGES = {"yaml": "pyyaml", "PIL": "pillow"}
_ERROR = "Error: "
_LOG_END = 64_000
# Of asking another Python what it has: it imports nothing.
_PATIENCE = 60
# Bytes of a training's states for Stable Diffusion 1: two with weights and moments, the best and the last file.
_ROOM = 1 << 30
_TRIES = 4

_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class TrainingFiles:
    """Where a training's files lie, by its name."""

    folder: Path
    name: str

    @property
    def config(self) -> Path:
        """The settings."""
        return self.folder / "config.yaml"

    @property
    def output(self) -> Path:
        """What comes out."""
        return self.folder / f"{self.name}.pt"

    @property
    def states(self) -> Path:
        """States, previews, status and report."""
        return self.folder / f"{self.name}.training"

    @property
    def log(self) -> Path:
        """What the process printed."""
        return self.folder / "log.txt"

    @property
    def best(self) -> Path:
        """The weights of the lowest held-out loss."""
        return self.states / "best.pt"

    @property
    def previews(self) -> Path:
        """The tiled previews."""
        return self.states / "previews" / "previews.png"

    def problem(self) -> str:
        """The last error in the log, or the end of a traceback; "" where there is neither."""
        try:
            with open_regular(self.log) as file:
                file.seek(max(0, self.log.stat().st_size - _LOG_END))
                lines = file.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        said = (line[len(_ERROR) :] for line in reversed(lines) if line.startswith(_ERROR))
        # A Python whose packages do not fit each other may fail before it can say so in our words.
        fallen = any(line.startswith("Traceback (") for line in lines)
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return next(said, last if fallen else "")


class Trainings:
    """The trainings in a folder, of which one runs at a time.

    Args:
        folder: made when the first one starts.
        python: the program that runs `hnloader train`; this one by default.
    """

    def __init__(self, folder: Path, python: str = "") -> None:
        self.folder = folder
        self.python = python or sys.executable

    # -- looking

    def names(self) -> list[str]:
        """Every training, the newest first."""
        try:
            found = [path for path in self.folder.iterdir() if (path / "config.yaml").is_file()]
        except OSError:
            return []
        return [path.name for path in sorted(found, key=lambda path: -(path / "config.yaml").stat().st_mtime)]

    def files(self, name: str) -> TrainingFiles:
        """The files of a training. Raises HypernetworkError for what is no name."""
        if not _NAME.fullmatch(name) or name != name.strip() or name.endswith("."):
            raise HypernetworkError(
                f"{shown(name)} cannot be a name: letters, digits, spaces and . _ - + ( ) were expected, at most 64 of "
                "them"
            )
        return TrainingFiles(self.folder / name, name)

    def running(self) -> str | None:
        """The name of the one that runs."""
        job = self._job()
        if job is None or not self._is_held(job):
            return None
        return str(job["name"])

    def settings(self, name: str) -> dict[str, Any]:
        """What a training was told."""
        from hnloader.training.schema import read_yaml

        try:
            found = read_yaml(read_regular(self.files(name).config).decode("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise HypernetworkError(f"there is no training {name!r} in {self.folder}") from error
        return found if isinstance(found, dict) else {}

    # -- acting

    def start(self, name: str, settings: Mapping[str, Any], preset: str = "style") -> TrainingFiles:
        """Begin a training, or begin one that is there anew with other settings.

        Args:
            name: of the training and of what it makes.
            settings: dotted keys of `hnloader.training.Config`, without `output`.
            preset: defaults of the others.

        Raises:
            HypernetworkError: a setting is missing or impossible, another training runs, one of this name has
                saved states, or the process cannot be started.
        """
        from hnloader.training import read_config, schema

        files = self.files(name)
        given = {**settings, "output": str(files.output)}
        for key in ("images", "model", "model_config", "start_from", "output"):
            path = expanded(str(given.get(key) or ""))
            if given.get(key) and (key != "model" or path.exists()):  # a model may be a name on the hub
                given[key] = str(path.absolute())
        config = read_config(None, given, preset)
        config.check()
        if any(files.states.glob("state-*.safetensors")):
            raise HypernetworkError(
                f"There is a training {name!r} already. Choose another name, or go on with that one."
            )
        self._spawn(files, schema.write(config))
        return files

    def resume(self, name: str, steps: int | None = None) -> TrainingFiles:
        """Go on from the newest saved state; to more `steps` than it was told at first, if given."""
        from hnloader.training import read_config, schema

        files = self.files(name)
        config = read_config(None, {**self.settings(name), **({"steps": steps} if steps else {})})
        self._spawn(files, schema.write(config), "--resume")
        return files

    def stop(self) -> str | None:
        """Ask the one that runs to end after its present step, with everything saved; its name."""
        name, job = self.running(), self._job()
        if name is None or job is None:
            return None
        if fcntl is None:
            _children[job["pid"]].terminate()
            return name
        with contextlib.suppress(ProcessLookupError):
            os.kill(job["pid"], signal.SIGTERM)
        return name

    def use(self, name: str, folder: Path, *, best: bool = False) -> Path:
        """Copy what came out (or the best by held-out loss) into a library; the copy, under a name that is free.

        Raises:
            HypernetworkError: there is nothing yet, or the folder cannot be written to.
        """
        files = self.files(name)
        source = files.best if best else files.output
        if not source.is_file():
            raise HypernetworkError(f"{name!r} has not made {'a measured file' if best else 'its file'} yet.")
        make_folder(folder)
        wanted = folder / f"{name}.pt"
        target = next(path for path in itertools.chain([wanted], numbered(wanted)) if not os.path.lexists(path))
        with replacing(target, overwrite=False, sources=[source]) as temporary:
            shutil.copyfile(source, temporary)
        return target

    def missing(self) -> str:
        """What the Python that would train lacks, in words; "" where it lacks nothing."""
        if self.python == sys.executable:
            return self._lacking([name for name in _NEEDED if importlib.util.find_spec(name) is None])
        code = f"import importlib.util as u; print([n for n in {_NEEDED!r} if u.find_spec(n) is None])"
        code += "; import sys; print(sys.version_info[:2])"
        try:
            done = subprocess.run(
                [self.python, "-c", code], env=self._environment(), capture_output=True, text=True, timeout=_PATIENCE
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            return f"{self.python} cannot be run: {getattr(error, 'strerror', None) or 'it does not answer'}."
        lacking: list[str] = re.findall(r"'(\w+)'", done.stdout)
        if done.returncode != 0 or "(" not in done.stdout:
            return f"{self.python} is no Python that works."
        return self._lacking(lacking)

    def _lacking(self, names: Sequence[str]) -> str:
        shown = ", ".join(_PACKAGES.get(each, each) for each in names)
        return f"{self.python} lacks {shown}." if names else ""

    # -- the process

    def _spawn(self, files: TrainingFiles, config: str, *options: str) -> None:
        """Start it with the lock in its hands; while another holds that, nothing is changed of what was told to it."""
        check_room(self.folder, _ROOM)  # before anything is written
        make_folder(self.folder)
        command = [self.python, "-m", "hnloader", "train", str(files.config.absolute()), *options]
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(lock_file(self._lock_path))
            self._take(lock)
            make_folder(files.folder)
            with replacing(files.config) as temporary:
                temporary.write_text(config, encoding="utf-8")
            log = stack.enter_context(lock_file(files.log))
            log.truncate(0)
            own: dict[str, Any] = {"start_new_session": True, "pass_fds": (lock.fileno(),)}
            if sys.platform == "win32":
                own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
            try:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=files.folder,
                    env=self._environment(),
                    **own,
                )
            except OSError as error:
                raise HypernetworkError(f"{self.python} cannot be run: {error.strerror or error}") from error
            with replacing(self._job_path) as temporary:
                temporary.write_text(json.dumps({"name": files.name, "pid": child.pid}), encoding="utf-8")
        _children[child.pid] = child
        # Waited for by a thread: a process that nobody waits for stays in the system's table.
        threading.Thread(target=child.wait, name="hnloader-training", daemon=True).start()

    def _take(self, lock: Any) -> None:
        for _ in range(_TRIES if fcntl is not None else 0):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.05)  # somebody may just be looking whether it is held
        running = self.running()
        if fcntl is not None or running is not None:
            raise HypernetworkError(
                f"The training {running or 'of another page'} is running. One runs at a time: wait for it, or stop it."
            )

    def _is_held(self, job: Mapping[str, Any]) -> bool:
        if fcntl is None:
            # Without such locks a page knows the processes that it started itself.
            return job["pid"] in _children and _children[job["pid"]].poll() is None
        try:
            with open_regular(self._lock_path) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _job(self) -> dict[str, Any] | None:
        try:
            job = json.loads(read_regular(self._job_path))
            return {"name": str(job["name"]), "pid": int(job["pid"])}
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _environment(self) -> dict[str, str]:
        """With this package where the other Python finds it, unless it lies among packages of another Python."""
        root = Path(__file__).resolve().parents[2]
        known = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", "NO_COLOR": "1"}
        if root.name not in ("site-packages", "dist-packages"):
            known["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        return known

    @property
    def _lock_path(self) -> Path:
        return self.folder / "lock"

    @property
    def _job_path(self) -> Path:
        return self.folder / "job.json"
