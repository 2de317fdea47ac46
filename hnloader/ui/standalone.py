"""`hnloader ui`: the pages on their own, served to this computer's browser."""

from __future__ import annotations

import atexit
import ipaddress
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError

if TYPE_CHECKING:
    from hnloader.ui.page_host import Host

DEFAULT_PORT = 7870
# How many ports after the default one are tried when it is taken (a second page is open).
_MORE_PORTS = 20
# Bytes of an image that is dropped on the page, and events of it that may wait for others.
LARGEST_UPLOAD = 50 << 20
_MOST_WAITING = 200

_HEADER = """
<div class="hnl-header">
  <div class="hnl-mark" aria-hidden="true">h</div>
  <div><h1>hnloader</h1><p>Stable Diffusion hypernetworks</p></div>
  <button type="button" class="hnl-plain hnl-push" id="hnl-theme"
    onclick="document.body.classList.toggle('dark')">Light / dark</button>
</div>
"""


@dataclass(frozen=True)
class Server:
    """A page that is being served."""

    url: str
    blocks: Any

    def close(self) -> None:
        """Stop serving."""
        self.blocks.close(verbose=False)


def is_local(address: str) -> bool:
    """Whether only this computer reaches a server that listens on `address`."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def check_address(address: str, auth: tuple[str, str] | None) -> None:
    """Raise HypernetworkError where others could reach the page without a password."""
    if not is_local(address) and auth is None:
        raise HypernetworkError(
            f"Others could reach the page on {address}. Give a user name and a password with --auth NAME:PASSWORD "
            "(or HNLOADER_UI_AUTH), or leave --host out to serve this computer alone."
        )


def start(
    host: Host, *, address: str = "127.0.0.1", port: int | None = None, auth: tuple[str, str] | None = None
) -> Server:
    """Serve the pages and return.

    Args:
        host: folders, output and generator.
        address: where to listen; anything but this computer alone needs `auth`.
        port: None takes 7870 or one of the 20 after it.
        auth: user name and password that the browser asks for.

    Raises:
        HypernetworkError: others could reach the page without a password, or the port is taken.
        MissingExtraError: gradio is not installed.
    """
    check_address(address, auth)
    gradio = _gradio()
    from hnloader.ui import compat
    from hnloader.ui.page import build_page

    with compat.blocks("hnloader") as blocks:
        compat.html(f'<div id="hnl-root">{_HEADER}</div>')
        build_page(host)
    blocks.queue(max_size=_MOST_WAITING)
    chosen = _free_port(address, port)
    try:
        compat.launch(
            blocks,
            server_name=address,
            server_port=chosen,
            auth=auth,
            inbrowser=False,
            prevent_thread_lock=True,
            theme=compat.theme(),
            # Images travel within the page or through gradio's own folder: no file of the disk is served.
            allowed_paths=[],
            max_file_size=LARGEST_UPLOAD,
            app_kwargs={"middleware": _middleware(address, auth)},
        )
    except (OSError, ValueError, gradio.exceptions.Error) as error:
        raise HypernetworkError(f"The page cannot be served on {address}, port {chosen}: {error}") from error
    shown = f"[{address}]" if ":" in address else address
    return Server(f"http://{shown}:{chosen}", blocks)


def _gradio() -> Any:
    """The gradio package, told to stay at home. Raises MissingExtraError."""
    from hnloader.errors import MissingExtraError

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # gradio asks its own server whether it is there; a proxy for the internet must not get in between.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", "127.0.0.1", "::1")))
    # Images on their way to the browser: in a folder of this user's and this run's own.
    if "GRADIO_TEMP_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="hnloader-ui-")
        os.environ["GRADIO_TEMP_DIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        import gradio
    except ImportError as error:
        raise MissingExtraError(f"The page needs {error.name or 'gradio'}: pip install 'hnloader[page]'") from error
    return gradio


def _middleware(address: str, auth: object) -> list[Any]:
    """What other sites send is refused, and requests that name another server: a name that was made to lead here."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from hnloader.ui.protection import Protection

    protection = [Middleware(Protection)]
    if auth is not None or not is_local(address):
        return protection
    # The last two are what releases of Starlette make of `[::1]:7870`.
    allowed = ["localhost", "127.0.0.1", address, f"[{address}]", "["]
    return [Middleware(TrustedHostMiddleware, allowed_hosts=allowed), *protection]


def _free_port(address: str, port: int | None) -> int:
    candidates = range(DEFAULT_PORT, DEFAULT_PORT + _MORE_PORTS + 1) if port is None else [port]
    for candidate in candidates:
        if (free := _bound(address, candidate)) is not None:
            return free
    if port is None:
        raise HypernetworkError(f"Ports {candidates[0]} to {candidates[-1]} are all taken. Choose one with --port.")
    raise HypernetworkError(
        f"Port {port} cannot be used on {address}. Is the page open already? Choose another --port."
    )


def _bound(address: str, port: int) -> int | None:
    """The port (a free one for 0), or None where it cannot be listened on."""
    try:
        kind, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(where)
            return int(server.getsockname()[1])
    except OSError:
        return None
