"""Options, state and the model of the stand-in host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class OptionInfo:
    def __init__(
        self, default=None, label="", component=None, component_args=None, onchange=None, section=None, **more: Any
    ) -> None:
        self.default, self.label, self.component = default, label, component
        self.component_args, self.onchange, self.section = component_args, onchange, section
        self.infotext = more.pop("infotext", None)
        self.comment_after = ""
        unknown = set(more) - {"refresh", "comment_before", "comment_after", "restrict_api", "category_id"}
        assert not unknown, f"OptionInfo has no {unknown}"

    def info(self, text: str) -> OptionInfo:
        self.comment_after += f"({text})"
        return self

    def needs_reload_ui(self) -> OptionInfo:
        return self.info("requires Reload UI")


class Options:
    """Values by attribute: what was set, else the default of a known option, else AttributeError."""

    def __init__(self) -> None:
        self.__dict__["data"] = {}
        self.__dict__["data_labels"] = {
            "sd_hypernetwork": OptionInfo("None", "Add hypernetwork to prompt"),
            "extra_networks_default_multiplier": OptionInfo(1.0, "Default multiplier for extra networks"),
            "samples_format": OptionInfo("png"),
            "extra_networks_card_description_is_html": OptionInfo(False),
            "outdir_samples": OptionInfo(""),
            "outdir_grids": OptionInfo(""),
            "outdir_txt2img_grids": OptionInfo(""),
            "lora_functional": OptionInfo(False),
        }

    def __getattr__(self, key: str) -> Any:
        if key in self.data:
            return self.data[key]
        if key in self.data_labels:
            return self.data_labels[key].default
        raise AttributeError(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.data or key in self.data_labels:
            self.data[key] = value
        else:
            super().__setattr__(key, value)

    def add_option(self, key: str, info: OptionInfo) -> None:
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)


class State:
    def __init__(self) -> None:
        self.interrupted = self.skipped = self.stopping_generation = False
        self.job = ""
        self.job_count = self.job_no = self.sampling_step = self.sampling_steps = 0
        self.textinfo = None

    def interrupt(self) -> None:
        self.interrupted = True

    def begin(self, job: str = "(unknown)") -> None:
        """A job begins; an interruption of the one before is forgotten."""
        self.interrupted = self.skipped = self.stopping_generation = False
        self.job, self.job_count, self.job_no, self.sampling_step = job, -1, 0, 0

    def end(self) -> None:
        self.job, self.job_count = "", 0


OptionHTML = OptionInfo
cmd_opts = SimpleNamespace(hypernetwork_dir="", freeze_settings=False, api=True, api_auth=None)
opts = Options()
state = State()
sd_model: Any = None
hypernetworks: dict[str, str] = {}
loaded_hypernetworks: list = []


def options_section(section, options: dict) -> dict:
    for option in options.values():
        option.section = section
    return options


def reload_hypernetworks() -> None:
    """The dictionary is a new one each time."""
    global hypernetworks
    from modules.hypernetworks import hypernetwork

    hypernetworks = hypernetwork.list_hypernetworks(cmd_opts.hypernetwork_dir)
