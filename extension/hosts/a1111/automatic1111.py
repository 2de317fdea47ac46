"""AUTOMATIC1111's webui as a host."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modules import extra_networks, script_callbacks, scripts, shared
from torch import nn

from hnloader.texts import well_formed
from hnloader.ui import TagButton

from ...host_library import HostLibrary
from .. import protocol
from ..protocol import Access, Axis, Events, Option, Panel
from .listing import listing
from .plain_linears import plain_linears
from .rendering import NO_HYPERNETWORK, QUICK_SETTING, Rendering, follow

_CLOSES = "hnloader_closes"
# Where forks keep their UNet: Forge and those after it, AUTOMATIC1111, and diffusers.
_UNETS = ("forge_objects.unet.model.diffusion_model", "model.diffusion_model", "unet")
# `switch_to_txt2img` is the webuis' own function.
_SEND = """(tag) => {
    const prompt = document.querySelector('#txt2img_prompt textarea');
    if (!prompt) return;
    prompt.value = (prompt.value.trimEnd() + ' ' + tag).trimStart();
    prompt.dispatchEvent(new Event('input', {bubbles: true}));
    if (window.switch_to_txt2img) window.switch_to_txt2img();
}"""


class Automatic1111(
    Rendering,
    protocol.ShowsMessages,
    protocol.HasOptions,
    protocol.ListsFiles,
    protocol.HasHypernetworks,
    protocol.ClosesJobs,
    protocol.FindsControlNets,
    protocol.FindsPlainLinears,
    protocol.WritesInfotext,
    protocol.ShowsPanel,
    protocol.ShowsCards,
    protocol.PlotsAxes,
    protocol.ShowsTab,
    protocol.ServesApi,
):
    """See `protocol.WebuiHost`."""

    name = "AUTOMATIC1111"
    tag_button = TagButton("Send to txt2img", _SEND)

    def __init__(self) -> None:
        self._listing = listing()

    def folders(self) -> list[Path]:
        """Return the webui's folder, then those of the setting."""
        more = str(self.option("hnloader_folders", "")).splitlines()
        return [self._listing.folder, *(Path(line.strip()) for line in more if line.strip())]

    def unet(self, job: Any = None) -> nn.Module | None:
        """Return the UNet of the model in use, which a refiner replaces during a job; see `_UNETS`."""
        for model in (follow(shared, "sd_model"), getattr(job, "sd_model", None)):
            for path in _UNETS:
                if isinstance(found := follow(model, path), nn.Module):
                    return found
        return None

    def connect(self, events: Events) -> None:
        """Register the tag just before the page is built: after the webui's own, since the last one wins."""

        class HypernetTag(extra_networks.ExtraNetwork):  # type: ignore[misc, unused-ignore]
            def __init__(self) -> None:
                super().__init__("hypernet")

            def activate(self, p: Any, params_list: list[Any]) -> None:
                first_pass = not getattr(p, "is_hr_pass", False)
                events.activate(p, [list(params.items) for params in params_list], first_pass)

            def deactivate(self, p: Any) -> None:
                events.deactivate()

        register = extra_networks.register_extra_network  # without it, no tag can act
        script_callbacks.on_before_ui(lambda: register(HypernetTag()))
        script_callbacks.on_model_loaded(lambda model: events.model_changed())
        script_callbacks.on_script_unloaded(events.unload)
        self.on_step(events.step)

    # Messages, settings and files.

    def show_message(self, text: str, job: Any = None) -> None:
        """Show the message also on the console. Without a job, it needs a call from the page to appear there."""
        text = well_formed(text)
        print(f"[hnloader] {text}")
        if job is None:
            import gradio

            gradio.Warning(html.escape(text, quote=False))  # gradio shows it as HTML
        elif callable(comment := getattr(job, "comment", None)):
            comment(text)

    def option(self, key: str, default: Any) -> Any:
        return getattr(shared.opts, key, default)

    def add_options(self, section: str, options: Sequence[Option]) -> None:
        def add() -> None:
            for option in options:
                shared.opts.add_option(option.key, _option_info(option, ("hnloader", section)))
            known = shared.opts.data_labels.get(QUICK_SETTING)
            if known is None or getattr(known, "section", None) == ("hnloader", section):
                shared.opts.add_option(QUICK_SETTING, self._quick_setting_info(("hnloader", section)))

        script_callbacks.on_ui_settings(add)

    def _quick_setting_info(self, section: tuple[str, str]) -> Any:
        """Describe 'Add hypernetwork to prompt' for webuis that lack it; only a setting can be a quick setting."""
        import gradio

        def choices() -> dict[str, list[str]]:
            return {"choices": [NO_HYPERNETWORK, *self._listing.names()]}

        label = "Add hypernetwork to prompt"
        return shared.OptionInfo(
            NO_HYPERNETWORK, label, gradio.Dropdown, choices, refresh=self._listing.refresh, section=section
        )

    def list_files(self, names: Callable[[], Mapping[str, str]]) -> None:
        self._listing.include(names)

    def refresh_files(self) -> None:
        self._listing.refresh()

    # Jobs.

    def clear_built_in(self) -> None:
        """Empty the list that the webui's attention applies."""
        getattr(shared, "loaded_hypernetworks", []).clear()

    def add_to_prompts(self, job: Any, tag: str) -> None:
        prompts = getattr(job, "all_prompts", None)
        if isinstance(prompts, list):
            job.all_prompts = [each if tag in each else each + tag for each in prompts]

    def at_close(self, job: Any, call: Callable[[], None]) -> None:
        close = getattr(job, "close", None)
        if not callable(close) or getattr(job, _CLOSES, False):
            return

        def close_and_call() -> None:
            try:
                close()
            finally:
                call()

        job.close = close_and_call
        setattr(job, _CLOSES, True)

    def control_nets(self, job: Any) -> Sequence[nn.Module]:
        """Return those of the extension sd-webui-controlnet, whose attention has the built-in hypernetworks, too.

        Units with the same file have copies of its wrapper around one network.
        """
        runner = getattr(job, "scripts", None)
        found: dict[int, nn.Module] = {}
        for script in getattr(runner, "alwayson_scripts", ()):
            for unit in getattr(vars(script).get("latest_network"), "control_params", None) or ():
                wrapper = getattr(unit, "control_model", None)
                network = getattr(wrapper, "control_model", wrapper)
                if isinstance(network, nn.Module):
                    found[id(network)] = network
        return list(found.values())

    def plain_linears(self) -> Callable[[nn.Module], bool]:
        return plain_linears()

    def parameters(self, job: Any) -> dict[str, Any]:
        parameters = getattr(job, "extra_generation_params", None)
        return parameters if isinstance(parameters, dict) else {}

    def on_paste(self, pasted: Callable[[dict[str, Any]], None]) -> None:
        script_callbacks.on_infotext_pasted(lambda text, fields: pasted(fields))

    # Places in the page, and the API.

    def panel_class(self, panel: Panel) -> type:
        """Return a script that is always visible. The webui makes one object for each tab."""

        class HypernetworksPanel(scripts.Script):  # type: ignore[misc, unused-ignore]
            def title(self) -> str:
                return panel.title

            def show(self, is_img2img: bool) -> Any:
                return scripts.AlwaysVisible

            def ui(self, is_img2img: bool) -> list[Any]:
                box = panel.build("img2img" if is_img2img else "txt2img")
                self.infotext_fields = [(box, panel.infotext_key)]
                self.paste_field_names = [panel.infotext_key]
                return [box]

            def process(self, p: Any, *args: Any) -> None:
                panel.apply(p, args[0] if args else None)

            def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
                panel.finish(p)

        return HypernetworksPanel

    def add_cards(self, library: HostLibrary) -> None:
        """Add the page before the webui builds its own, when its default pages exist."""
        from .cards import add_page

        script_callbacks.on_before_ui(lambda: add_page(library, self.refresh_files))

    def add_axes(self, axes: Sequence[Axis]) -> None:
        """Add the axes before the page is built, when the plot's script is loaded."""
        script_callbacks.on_before_ui(lambda: _add_axes(axes))

    def add_tab(self, title: str, elem_id: str, build: Callable[[], None]) -> None:
        def tabs() -> list[tuple[Any, str, str]]:
            try:
                import gradio

                with gradio.Blocks(analytics_enabled=False) as page:
                    build()
            except Exception as error:
                print(f"[hnloader] Could not add the tab '{title}': {type(error).__name__}: {error}")
                return []
            return [(page, title, elem_id)]

        script_callbacks.on_ui_tabs(tabs)

    def access(self) -> Access:
        """Read the command line. The webui's own API ignores the page's login; ours accepts either login."""
        flags = shared.cmd_opts
        open_to_others = any(getattr(flags, name, None) for name in ("listen", "server_name", "share", "ngrok"))
        enabled = bool(getattr(flags, "api", False) or getattr(flags, "nowebui", False))
        return Access(enabled, _accounts(flags), not open_to_others)

    def on_app(self, serve: Callable[[Any], None]) -> None:
        script_callbacks.on_app_started(lambda page, app: serve(app))


def _option_info(option: Option, section: tuple[str, str]) -> Any:
    import gradio

    lines = {"component": gradio.Textbox, "component_args": {"lines": 3}} if isinstance(option.default, str) else {}
    info = shared.OptionInfo(option.default, option.label, section=section, restrict_api=option.restrict_api, **lines)
    if option.info:
        info.info(option.info)
    return info.needs_reload_ui() if option.needs_reload else info


def _add_axes(axes: Sequence[Axis]) -> None:
    """Add the axes to the plot's script, if there is one."""
    labels = {axis.label for axis in axes}
    for data in scripts.scripts_data:
        if Path(data.path).name == "xyz_grid.py" and hasattr(data.module, "axis_options"):
            others = [option for option in data.module.axis_options if option.label not in labels]
            data.module.axis_options[:] = [*others, *(_axis_option(data.module, axis) for axis in axes)]
            return


def _axis_option(plot: Any, axis: Axis) -> Any:
    def confirm(p: Any, values: list[Any]) -> None:
        for value in values:
            axis.check(value)

    def apply(p: Any, value: Any, values: Any) -> None:
        axis.apply(p, value)

    return plot.AxisOption(axis.label, axis.kind, apply, confirm=confirm, cost=axis.cost, choices=axis.choices)


def _accounts(flags: Any) -> dict[str, str]:
    """Read `--api-auth`, `--gradio-auth` and `--gradio-auth-path`: pairs `user:password`, separated by commas."""
    texts = [str(getattr(flags, name, None) or "") for name in ("api_auth", "gradio_auth")]
    path = getattr(flags, "gradio_auth_path", None)
    if path:
        texts += Path(path).read_text(encoding="utf-8").splitlines()
    pairs = (part.strip().partition(":") for text in texts for part in text.split(","))
    return {user: password for user, _, password in pairs if user}
