"""Server of `hnloader ui`: the pages, for this computer's browser."""

from __future__ import annotations

import atexit
import ipaddress
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError, MissingExtraError, install_advice

if TYPE_CHECKING:
    from hnloader.ui.page_host import Host

__all__ = ["DEFAULT_PORT", "LARGEST_UPLOAD", "Server", "check_address", "is_local", "start"]

DEFAULT_PORT = 7870
# Ports to try after the default one, which a second page may hold.
_MORE_PORTS = 20
LARGEST_UPLOAD = 50 << 20  # bytes
_MOST_WAITING = 200  # events in the queue

_HEADER = """
<div class="hnl-header">
  <div class="hnl-mark" aria-hidden="true">h</div>
  <div><h1>hnloader</h1><p>Stable Diffusion hypernetworks</p></div>
  <button type="button" class="hnl-plain" id="hnl-theme"
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
    """Return whether only this computer reaches a server at `address`."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def check_address(address: str, auth: tuple[str, str] | None) -> None:
    """Raise HypernetworkError if others could reach the page without a password."""
    if not is_local(address) and auth is None:
        raise HypernetworkError(
            f"{address}: others could reach the page without a password. Set one with --auth NAME:PASSWORD (or "
            "HNLOADER_UI_AUTH), or omit --host to serve this computer alone."
        )


def start(
    host: Host, *, address: str = "127.0.0.1", port: int | None = None, auth: tuple[str, str] | None = None
) -> Server:
    """Serve the pages and return.

    Args:
        host: Folders, output and generator.
        address: Where to listen. Anything but this computer alone requires `auth`.
        port: None takes 7870 or one of the next 20.
        auth: User name and password.

    Raises:
        HypernetworkError: Others could reach the page without a password, or the port is taken.
        MissingExtraError: gradio is missing.
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
            allowed_paths=[],  # images travel within the page or through gradio's folder
            max_file_size=LARGEST_UPLOAD,
            app_kwargs={"middleware": _middleware(address, auth)},
        )
    except (OSError, ValueError, gradio.exceptions.Error) as error:
        raise HypernetworkError(
            f"{address}, port {chosen}: cannot serve the page ({error}). Choose another --host or --port."
        ) from error
    shown = f"[{address}]" if ":" in address else address
    return Server(f"http://{shown}:{chosen}", blocks)


def _gradio() -> Any:
    """Import gradio, set up to use no network. Raises MissingExtraError."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # gradio sends its own server a request, which must not go through a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost", "127.0.0.1", "::1")))
    # Images on their way to the browser, readable by this user alone.
    if "GRADIO_TEMP_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="hnloader-ui-")
        os.environ["GRADIO_TEMP_DIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        import gradio
    except ImportError as error:
        missing = error.name or "gradio"
        raise MissingExtraError(f"The page requires {missing}. {install_advice('page')}.") from error
    return gradio


def _middleware(address: str, auth: object) -> list[Any]:
    """Return the middleware; on this computer alone it also refuses other host names (DNS rebinding)."""
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
        raise HypernetworkError(f"Ports {candidates[0]} to {candidates[-1]} are taken. Choose another with --port.")
    raise HypernetworkError(
        f"Port {port} is not available on {address}. Check whether the page is already open, or choose another --port."
    )


def _bound(address: str, port: int) -> int | None:
    """Return the port (a free one for 0), or None if it is not available."""
    try:
        kind, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(where)
            return int(server.getsockname()[1])
    except OSError:
        return None
