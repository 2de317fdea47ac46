"""Who reaches the page, and what the server gives away."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from typer.testing import CliRunner

from hnloader.cli.app import app
from hnloader.errors import HypernetworkError
from hnloader.ui.standalone import LARGEST_UPLOAD, check_address, is_local, start


def get(url: str, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    return response.status, response.read().decode(errors="replace")


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_this_computer_needs_no_password(address: str) -> None:
    assert is_local(address)
    check_address(address, None)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_others_need_a_password(address: str) -> None:
    with pytest.raises(HypernetworkError, match="--auth"):
        check_address(address, None)
    check_address(address, ("me", "secret"))


def test_a_port_that_is_taken_is_told(host_of, server_for, folder: Path) -> None:
    port = urlsplit(server_for(host_of(folder)).url).port
    with pytest.raises(HypernetworkError, match=f"Port {port} .* --port"):
        start(host_of(folder), port=port)


@pytest.mark.slow
def test_no_file_of_the_disk_is_served(host_of, server_for, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.png").write_text("SECRET")
    (folder / "notes.txt").write_text("SECRET")
    url = server_for(host_of(folder)).url
    assert get(url, "/")[0] == 200
    for path in (folder / "notes.txt", tmp_path / "images" / "mine.png", Path(__file__), Path("pyproject.toml")):
        for route in ("/gradio_api/file=", "/file="):
            status, text = get(url, route + quote(str(path)))
            assert status in (403, 404), (route, path)
            assert "SECRET" not in text


@pytest.mark.slow
def test_a_name_that_was_made_to_lead_here_is_refused(host_of, server_for, folder: Path) -> None:
    url = server_for(host_of(folder)).url
    assert get(url, "/", Host="localhost:7870")[0] == 200
    assert get(url, "/", Host="evil.example")[0] == 400


@pytest.mark.slow
def test_other_sites_cannot_upload_and_uploads_have_an_end(host_of, server_for, folder: Path) -> None:
    """An upload is what a page of another site could send without being asked for leave."""
    url = urlsplit(server_for(host_of(folder)).url)

    def upload(size: int, **headers: str) -> int:
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        connection = http.client.HTTPConnection(url.netloc, timeout=60)
        body = head + bytes(size) + b"\r\n--b--\r\n"
        given = {"Content-Type": "multipart/form-data; boundary=b", **headers}
        connection.request("POST", "/gradio_api/upload", body, given)
        return connection.getresponse().status

    assert upload(100) == 200
    assert upload(100, Origin="https://evil.example") == 403
    assert upload(100, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert upload(LARGEST_UPLOAD + 1) == 413


@pytest.mark.slow
def test_with_a_password_nothing_is_shown_without_it(host_of, server_for, folder: Path) -> None:
    url = server_for(host_of(folder), auth=("me", "secret")).url
    status, text = get(url, "/config")
    assert status == 401
    assert "Hypernetwork" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--host", "0.0.0.0"], 1, "Others could reach the page"),
        (["--auth", "me"], 2, "NAME:PASSWORD"),
        (["--folder", "nowhere"], 2, "nowhere is not a folder"),
        (["--model", "nowhere"], 1, "There is no folder or file nowhere"),
    ],
)
def test_what_cannot_be_served_is_told_before_it_starts(arguments: list[str], code: int, said: str) -> None:
    result = CliRunner().invoke(app, ["ui", "--no-browser", *arguments])
    assert result.exit_code == code
    assert said in re.sub(r"[\s│]+", " ", result.output)


@pytest.mark.slow
def test_the_command_serves_until_ctrl_c(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hnloader", "ui", "--no-browser", "--port", "0", "--folder", str(folder)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        status, text = get(url, "/")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert status == 200
    assert "hnloader" in text
    assert process.returncode == 130
    assert "Traceback" not in errors
