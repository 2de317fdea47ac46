"""Checks of ComfyUI's page in a browser: add a node, connect it, run, read an error, reload."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from tests.support.browsers import FLAGS, find_chromium

from .comfyui_checks import image_workflow
from .comfyui_server import ComfyUI

# Milliseconds.
PATIENCE = 240_000
_LOADER = "HnloaderLoadHypernetwork"
_FIND = "const find = (type) => app.graph._nodes.find((node) => node.type === type);"
# The place of an input or output of a node on the screen.
_SLOT = f"""([type, output, slot]) => {{
    {_FIND}
    const node = find(type);
    const index = output ? node.findOutputSlot(slot) : node.findInputSlot(slot);
    const [x, y] = node.getConnectionPos(!output, index);
    const box = app.canvas.canvas.getBoundingClientRect();
    const [left, top] = app.canvas.ds.convertOffsetToCanvas([x, y]);
    return [left + box.left, top + box.top];
}}"""


class User:
    """A user at the page."""

    def __init__(self, page: Page, host: ComfyUI) -> None:
        self.page, self.host = page, host
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(f"{error.message} {error.stack}"))

    def open(self) -> None:
        """Open the page, without the list of templates that ComfyUI shows to new users."""
        self.host.post("/api/settings", {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.49.6"})
        self.page.goto(self.host.address)
        self.wait()

    def wait(self) -> None:
        """Wait until the page has a graph."""
        self.page.wait_for_function(
            "Boolean(window.app?.graph && window.LiteGraph?.registered_node_types?.HnloaderLoadHypernetwork)",
            timeout=PATIENCE,
        )
        self.page.wait_for_timeout(2_000)

    def show(self, workflow: dict[str, Any]) -> None:
        """Show a workflow in the API's form, and the whole of it on the screen."""
        self.page.evaluate("async (given) => { await app.loadApiJson(given, 'check'); }", workflow)
        self.page.wait_for_timeout(1_500)
        self.fit()

    def fit(self, scale: float = 0.55, offset: tuple[int, int] = (250, 180)) -> None:
        """Move the graph; by default all of it is on the screen. ComfyUI hides text and images of small nodes."""
        self.page.evaluate(
            "([scale, offset]) => { app.canvas.ds.scale = scale; app.canvas.ds.offset = offset;"
            " app.canvas.setDirty(true, true); }",
            [scale, offset],
        )
        self.page.wait_for_timeout(500)

    def add(self, name: str, place: tuple[int, int]) -> None:
        """Add a node as users do: double-click, type its name, press Enter."""
        self.page.mouse.dblclick(*place)
        box = self.page.locator("input:focus")
        box.wait_for()
        box.fill(name)
        self.page.wait_for_timeout(1_500)
        self.page.keyboard.press("Enter")
        self.page.wait_for_timeout(1_000)
        # In newer pages the node follows the mouse until a click.
        self.page.mouse.move(place[0] + 5, place[1] + 5)
        self.page.mouse.click(place[0] + 5, place[1] + 5)
        self.page.wait_for_timeout(500)

    def connect(self, source: tuple[str, str], target: tuple[str, str]) -> None:
        """Drag a link from an output to an input."""
        begin = self.page.evaluate(_SLOT, [source[0], True, source[1]])
        end = self.page.evaluate(_SLOT, [target[0], False, target[1]])
        self.page.mouse.move(*begin)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=12)
        self.page.mouse.up()
        self.page.wait_for_timeout(500)

    def set(self, kind: str, **values: object) -> None:
        """Set values of a node's widgets."""
        self.page.evaluate(
            f"""([type, values]) => {{
                {_FIND}
                for (const [name, value] of Object.entries(values)) {{
                    const widget = find(type).widgets.find((each) => each.name === name);
                    widget.value = value;
                    widget.callback?.(value, app.canvas, find(type));
                }}
            }}""",
            [kind, values],
        )
        self.page.wait_for_timeout(1_000)

    def node(self, kind: str, code: str) -> Any:
        """Return the value of an expression about a node."""
        return self.page.evaluate(f"(type) => {{ {_FIND} const node = find(type); return {code}; }}", kind)

    def run(self) -> dict[str, Any] | None:
        """Press Run; return the entry of the new job in the history, or None if it was refused."""
        before = set(self.host.get("/history"))
        button = self.page.get_by_test_id("queue-button").or_(self.page.get_by_role("button", name="Run", exact=True))
        with self.page.expect_response(lambda answer: answer.url.endswith("/prompt")) as sent:
            button.first.click()
        if sent.value.status != 200:
            return None
        for _ in range(PATIENCE // 500):
            self.page.wait_for_timeout(500)
            added = [entry for queued, entry in self.host.get("/history").items() if queued not in before]
            if added:
                entry: dict[str, Any] = added[0]
                return entry
        raise AssertionError("The job did not end.")

    def read_error(self, text: str) -> str:
        """Return the message with a text, which newer pages show after a click, and close it."""
        details = self.page.get_by_role("button", name="View details")
        message = self.page.get_by_text(text)
        expect(details.or_(message).first).to_be_visible(timeout=20_000)
        if details.count():
            details.first.click()
        info = self.page.get_by_role("button", name="Info for")  # an input that a node refuses
        expect(info.or_(message).first).to_be_visible(timeout=20_000)
        if info.count():
            info.first.click()
        expect(message.first).to_be_visible(timeout=20_000)
        said = message.first.inner_text()
        self.page.keyboard.press("Escape")
        self.page.wait_for_timeout(1_000)
        return said


@contextmanager
def browser(host: ComfyUI) -> Iterator[User]:
    """Open the page in a browser."""
    with sync_playwright() as playwright:
        program = find_chromium(playwright.chromium.executable_path)
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = chromium.new_page(viewport={"width": 1500, "height": 950})
        user = User(page, host)
        user.open()
        yield user
        chromium.close()


def adds_and_runs(user: User) -> str:
    """Add the loader to a workflow, connect it and run."""
    user.show(image_workflow())
    user.add("Load Hypernetwork (hnloader)", (700, 820))
    assert user.node(_LOADER, "Boolean(node)"), "the search did not add the node"
    user.node(_LOADER, "(node.pos = [60, 760], app.canvas.setDirty(true, true))")
    user.fit()
    user.connect(("CheckpointLoaderSimple", "MODEL"), (_LOADER, "model"))
    user.connect((_LOADER, "MODEL"), ("KSampler", "model"))
    user.set(_LOADER, hypernetwork="ink.pt", strength=0.7)
    links = user.page.evaluate(
        "app.graph._nodes.map((node) => [node.type, node.inputs?.find((each) => each.type === 'MODEL')?.link])"
    )
    entry = user.run()
    assert entry is not None and entry["status"]["status_str"] == "success", entry
    (image,) = [found for output in entry["outputs"].values() for found in output.get("images", [])]
    nodes = image_workflow()
    nodes["load"] = {
        "class_type": _LOADER,
        "inputs": {"model": ["model", 0], "hypernetwork": "ink.pt", "strength": 0.7},
    }
    nodes["sampler"]["inputs"]["model"] = ["load", 0]
    nodes["save"]["inputs"]["filename_prefix"] = "by the API"
    (wanted,) = user.host.outputs(nodes)["save"]["images"]
    assert pixels(user.host.saved(image)) == pixels(user.host.saved(wanted)), links
    return "added, connected and run; the image equals that of the API"


def pixels(content: bytes) -> bytes:
    """Return the pixels of an image file."""
    import io

    from PIL import Image

    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def shows_the_preview(user: User) -> str:
    user.fit(1.0, (300, -600))
    preview = user.page.get_by_alt_text("Preview of the hypernetwork").last
    expect(preview).to_be_visible(timeout=20_000)
    height = user.node(_LOADER, "node.size[1]")
    user.set(_LOADER, hypernetwork="flat.pt")
    expect(preview).to_be_hidden(timeout=20_000)
    assert user.node(_LOADER, "node.size[1]") < height
    user.set(_LOADER, hypernetwork="ink.pt")
    return "of the chosen file"


def reloads(user: User) -> str:
    """Reload the page: the workflow with its values and the preview are back."""
    # The page keeps a workflow when the user moves something.
    user.fit()
    begin = user.node(_LOADER, "app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 80, node.pos[1] - 14])")
    box = user.page.locator("#graph-canvas").bounding_box()
    assert box is not None
    place = (begin[0] + box["x"], begin[1] + box["y"])
    user.page.mouse.move(*place)
    user.page.mouse.down()
    user.page.mouse.move(place[0] + 12, place[1] + 8, steps=6)
    user.page.mouse.up()
    user.page.wait_for_timeout(4_000)
    user.page.reload()
    user.wait()
    user.page.wait_for_timeout(3_000)
    values = user.node(_LOADER, "node && node.widgets.map((each) => each.value)")
    assert values is not None and values[:2] == ["ink.pt", 0.7], values
    user.fit(1.0, (300, -600))
    expect(user.page.get_by_alt_text("Preview of the hypernetwork").last).to_be_visible(timeout=20_000)
    return f"values {values[:2]} and preview are back"


def shows_errors(user: User) -> str:
    """Run with a file for another model, and with one that is missing."""
    user.set(_LOADER, hypernetwork="only 2048.pt")
    entry = user.run()
    assert entry is not None and entry["status"]["status_str"] == "error", entry
    said = " ".join(user.read_error("made for SDXL (2048)").split())[:160]
    user.set(_LOADER, hypernetwork="gone.pt")
    assert user.run() is None, "a missing file was not refused"
    user.read_error("the file is missing")
    user.set(_LOADER, hypernetwork="ink.pt")
    return said


def shows_info(user: User) -> str:
    user.page.evaluate(
        "() => { app.graph.clear(); const node = LiteGraph.createNode('HnloaderHypernetworkInfo');"
        " node.pos = [200, 200]; app.graph.add(node); }"
    )
    user.fit(1.0)
    user.set("HnloaderHypernetworkInfo", hypernetwork="ink.pt")
    entry = user.run()
    assert entry is not None and entry["status"]["status_str"] == "success", entry
    user.page.wait_for_timeout(1_500)
    text = user.node(
        "HnloaderHypernetworkInfo", "node.widgets.find((each) => each.name === 'hnloader_text')?.element.value"
    )
    assert text and "SD 1" in text, text
    expect(user.page.locator("textarea").last).to_be_visible()
    return " / ".join(text.splitlines()[:3])


def shows_help(user: User) -> str:
    """Check that the page finds the help of each node, and lists the examples."""
    found = []
    for name in user.host.get("/object_info"):
        if name.startswith("Hnloader"):
            text = user.host.read(f"/extensions/hnloader/docs/{name}.md").decode()
            assert text.startswith("# "), name
            found.append(name)
    templates = user.host.get("/workflow_templates").get("hnloader", [])
    assert len(found) == 7 and len(templates) >= 4, templates
    for name in templates:
        content = user.host.read(f"/api/workflow_templates/hnloader/{name}.json")
        user.page.evaluate("async (given) => { await app.loadGraphData(given); }", json.loads(content))
        user.page.wait_for_timeout(1_500)
        unknown = user.page.evaluate(
            "app.graph._nodes.filter((node) => !LiteGraph.registered_node_types[node.type]).map((node) => node.type)"
        )
        assert not unknown, unknown
        user.page.keyboard.press("Escape")
    return f"help of {len(found)} nodes; examples: {', '.join(sorted(templates))}"


def quiet(user: User) -> str:
    ours = [error for error in user.errors if "hnloader" in error]
    assert not ours, ours[0]
    return f"no error from the node pack; {len(user.errors)} of the page itself"


PAGE: dict[str, Callable[[User], str]] = {
    "page: add and run": adds_and_runs,
    "page: preview": shows_the_preview,
    "page: reload": reloads,
    "page: errors": shows_errors,
    "page: info": shows_info,
    "page: help": shows_help,
    "page: quiet": quiet,
}


def tried(user: User, check: Callable[[User], str], pictured: Path) -> str:
    """Run a check, and save an image of the page if it fails."""
    try:
        return check(user)
    except Exception:
        user.page.screenshot(path=pictured)
        raise
