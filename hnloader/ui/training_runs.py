"""Training runs that the page starts: processes of `hnloader train`, which continue when the page is closed.

Each has a folder in a common one:

- NAME/config.yaml: its settings
- NAME/NAME.pt (of a LoRA .safetensors): its output, with NAME.training for states, previews and status.json
- NAME/log.txt: its messages
- lock, job.json: locked by the current training run, and its name

The process inherits the locked file, so that the lock lasts as long as the process, whichever page started it.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hnloader.conversion.planning import numbered
from hnloader.errors import HypernetworkError
from hnloader.files import check_room, expanded, make_folder, open_regular, open_to_append, read_regular, replacing
from hnloader.texts import shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["TrainingFiles", "TrainingRuns"]

_NAME = re.compile(r"[\w][\w .()+-]{0,63}")
_REQUIRED = ("diffusers", "transformers", "accelerate", "safetensors", "torch", "numpy", "yaml", "PIL", "typer", "rich")
_PACKAGES = {"yaml": "pyyaml", "PIL": "pillow"}
_ERROR = "Error: "
_LOG_TAIL = 64_000
# Seconds for another Python to list its packages; it imports none.
_TIMEOUT = 60
# Bytes for Stable Diffusion 1: two states with weights and moments, the best weights and the output.
_SPACE = 1 << 30
_TRIES = 4

_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class TrainingFiles:
    """The files of a training run.

    Attributes:
        folder: Its folder.
        name: Its name.
        suffix: Suffix of its output.
    """

    folder: Path
    name: str
    suffix: str = ".pt"

    @property
    def config(self) -> Path:
        """The settings."""
        return self.folder / "config.yaml"

    @property
    def output(self) -> Path:
        """The trained file."""
        return self.folder / f"{self.name}{self.suffix}"

    @property
    def run_folder(self) -> Path:
        """States, previews, status and report."""
        return self.folder / f"{self.name}.training"

    @property
    def log(self) -> Path:
        """The messages of the process."""
        return self.folder / "log.txt"

    @property
    def best(self) -> Path:
        """The weights with the lowest validation loss."""
        return self.run_folder / f"best{self.suffix}"

    @property
    def previews(self) -> Path:
        """The tiled previews."""
        return self.run_folder / "previews" / "previews.png"

    @property
    def strengths(self) -> Path:
        """The newest grid of previews at several strengths."""
        return max(self.previews.parent.glob("strengths-*.png"), default=self.previews.parent / "strengths.png")

    def problem(self) -> str:
        """Return the last error in the log, or the last line of a traceback; "" if there is none."""
        try:
            with open_regular(self.log) as file:
                file.seek(max(0, self.log.stat().st_size - _LOG_TAIL))
                lines = file.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        errors = [line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)]
        if errors:
            return errors[-1]
        # A Python with incompatible packages fails before it reports an error.
        crashed = any(line.startswith("Traceback (") for line in lines)
        return next((line.strip() for line in reversed(lines) if line.strip()), "") if crashed else ""


class TrainingRuns:
    """The training runs in a folder; one runs at a time.

    Args:
        folder: Created by the first training run.
        python: The Python interpreter that runs `hnloader train`. Default: this one.
    """

    def __init__(self, folder: Path, python: str = "") -> None:
        self.folder = folder
        self.python = python or sys.executable

    def names(self) -> list[str]:
        """Return the names of all training runs, newest first."""
        try:
            found = [path for path in self.folder.iterdir() if (path / "config.yaml").is_file()]
        except OSError:
            return []
        return [path.name for path in sorted(found, key=lambda path: -(path / "config.yaml").stat().st_mtime)]

    def files(self, name: str) -> TrainingFiles:
        """Return the files of a training run, or raise HypernetworkError for an invalid name."""
        if not _NAME.fullmatch(name) or name != name.strip() or name.endswith("."):
            raise HypernetworkError(
                f"Output name: expected at most 64 letters, digits, spaces and . _ - + ( ), got {shown(name)}."
            )
        files = TrainingFiles(self.folder / name, name)
        with contextlib.suppress(HypernetworkError):  # a new one
            return replace(files, suffix=_suffix(_read_settings(files)))
        return files

    def running(self) -> str | None:
        """Return the name of the current training run."""
        job = self._job()
        return str(job["name"]) if job is not None and self._is_locked(job) else None

    def settings(self, name: str) -> dict[str, Any]:
        """Return the settings of a training run, or raise HypernetworkError if it does not exist."""
        return _read_settings(self.files(name))

    def start(self, name: str, settings: Mapping[str, Any], preset: str = "style") -> TrainingFiles:
        """Start a training run.

        Args:
            name: The name of the training and of its output.
            settings: Dotted keys of `hnloader.training.Config`, without `output`.
            preset: The defaults of the other settings.

        Raises:
            HypernetworkError: A setting is missing or wrong, another training runs, this one has saved states, or the
                process cannot be started.
        """
        from hnloader.training import read_config, schema

        files = replace(self.files(name), suffix=_suffix(settings))
        given = {**settings, "output": str(files.output)}
        for key in ("images", "model", "model_config", "start_from", "output"):
            path = expanded(str(given.get(key) or ""))
            if given.get(key) and (key != "model" or path.exists()):  # a model may be a name on the Hub
                given[key] = str(path.absolute())
        config = read_config(None, given, preset)
        config.check()
        if any(files.run_folder.glob("state-*.safetensors")):
            raise HypernetworkError(f"Training run {name!r} exists. Choose another output name, or resume it.")
        self._spawn(files, schema.write(config))
        return files

    def resume(self, name: str, steps: int | None = None) -> TrainingFiles:
        """Resume from the newest saved state; up to `steps`, if given."""
        from hnloader.training import read_config, schema

        files = self.files(name)
        config = read_config(None, {**self.settings(name), **({"steps": steps} if steps else {})})
        self._spawn(files, schema.write(config), "--resume")
        return files

    def stop(self) -> str | None:
        """Ask the current training run to stop after its current step, with everything saved; return its name."""
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
        """Copy the output, or the weights with the lowest validation loss, into a library under a free name.

        Raises:
            HypernetworkError: The file does not exist yet, or the folder cannot be written.
        """
        files = self.files(name)
        source = files.best if best else files.output
        if not source.is_file():
            raise HypernetworkError(f"Training run {name!r} has no {'validated weights' if best else 'output'} yet.")
        make_folder(folder)
        wanted = folder / f"{name}{files.suffix}"
        target = next(path for path in itertools.chain([wanted], numbered(wanted)) if not os.path.lexists(path))
        with replacing(target, overwrite=False, sources=[source]) as temporary:
            shutil.copyfile(source, temporary)
        return target

    def missing(self) -> str:
        """Return a message about the packages that the Python interpreter lacks; "" if it has all."""
        if self.python == sys.executable:
            return self._missing_text([name for name in _REQUIRED if importlib.util.find_spec(name) is None])
        code = f"import importlib.util as u; print([n for n in {_REQUIRED!r} if u.find_spec(n) is None])"
        code += "; import sys; print(sys.version_info[:2])"
        try:
            done = subprocess.run(
                [self.python, "-c", code], env=self._environment(), capture_output=True, text=True, timeout=_TIMEOUT
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            return f"{self.python} cannot be run: {getattr(error, 'strerror', None) or 'no answer'}."
        missing: list[str] = re.findall(r"'(\w+)'", done.stdout)
        if done.returncode != 0 or "(" not in done.stdout:
            return f"{self.python} is not a working Python interpreter."
        return self._missing_text(missing)

    def _missing_text(self, names: Sequence[str]) -> str:
        packages = ", ".join(_PACKAGES.get(each, each) for each in names)
        return f"{self.python} lacks {packages}." if names else ""

    def _spawn(self, files: TrainingFiles, config: str, *options: str) -> None:
        """Start the process with the lock; change no file while another training run has it."""
        check_room(self.folder, _SPACE)  # before anything is written
        make_folder(self.folder)
        command = [self.python, "-m", "hnloader", "train", str(files.config.absolute()), *options]
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(open_to_append(self._lock_path))
            self._acquire(lock)
            make_folder(files.folder)
            with replacing(files.config) as temporary:
                temporary.write_text(config, encoding="utf-8")
            log = stack.enter_context(open_to_append(files.log))
            log.truncate(0)
            detached: dict[str, Any] = {"start_new_session": True, "pass_fds": (lock.fileno(),)}
            if sys.platform == "win32":
                detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
            try:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=files.folder,
                    env=self._environment(),
                    **detached,
                )
            except OSError as error:
                raise HypernetworkError(f"{self.python} cannot be run: {error.strerror or error}.") from error
            with replacing(self._job_path) as temporary:
                temporary.write_text(json.dumps({"name": files.name, "pid": child.pid}), encoding="utf-8")
        _children[child.pid] = child
        # Without a wait, the finished process would stay in the system's table.
        threading.Thread(target=child.wait, name="hnloader-training", daemon=True).start()

    def _acquire(self, lock: Any) -> None:
        for _ in range(_TRIES if fcntl is not None else 0):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.05)  # `_is_locked` locks the file for a moment
        running = self.running()
        if fcntl is not None or running is not None:
            which = f"Training run {shown(running)}" if running else "A training run of another page"
            raise HypernetworkError(f"{which} is in progress. Wait for it, or stop it.")

    def _is_locked(self, job: Mapping[str, Any]) -> bool:
        if fcntl is None:
            # Without such locks, a page knows only its own processes.
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
        """Return an environment in which another Python finds this package, but not the packages of this Python."""
        root = Path(__file__).resolve().parents[2]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", "NO_COLOR": "1"}
        if root.name not in ("site-packages", "dist-packages"):
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        return environment

    @property
    def _lock_path(self) -> Path:
        return self.folder / "lock"

    @property
    def _job_path(self) -> Path:
        return self.folder / "job.json"


def _read_settings(files: TrainingFiles) -> dict[str, Any]:
    from hnloader.training.schema import read_yaml

    try:
        found = read_yaml(read_regular(files.config).decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        place = files.folder.parent
        raise HypernetworkError(f"Training run {files.name!r}: not found in {place}. Check the name.") from error
    return found if isinstance(found, dict) else {}


def _suffix(settings: Mapping[str, Any]) -> str:
    return ".safetensors" if settings.get("method") == "lora" else ".pt"
