"""Build the pages of the documentation site that have no file in docs/: hooks of mkdocs and an extension of griffe.

README.md becomes the start page; the examples, CHANGELOG.md, CONTRIBUTING.md and SECURITY.md become pages. The
reference of the commands comes from the command line itself, and that of the training settings from their classes.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import griffe

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# Files outside docs/ and the pages that they become.
ROOT_PAGES = {
    "README.md": "index.md",
    "examples/README.md": "examples.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "dev/contributing.md",
    "SECURITY.md": "dev/reporting.md",
    "lab/README.md": "dev/lab.md",
}
_EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file in docs/."""
    from mkdocs.structure.files import File

    pages = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in ROOT_PAGES.items()}
    pages["examples.md"] = examples_page(pages["examples.md"])
    pages["reference/commands.md"] = commands_page()
    pages["reference/settings.md"] = settings_page()
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/ at the pages of the site."""
    uri = page.file.src_uri
    source = next((ROOT / name for name, made in ROOT_PAGES.items() if made == uri), ROOT / "docs" / uri)
    depth = uri.count("/")

    def rewritten(found: re.Match[str]) -> str:
        image, text, target, anchor = found.groups("")
        if "://" in target:
            return found[0]
        path = (source.parent / target).resolve()
        if not path.is_relative_to(ROOT):
            return found[0]
        name = path.relative_to(ROOT).as_posix()
        if name not in ROOT_PAGES and not name.startswith("docs/") and path.exists():
            return text  # a file of the repository that the site does not have
        inside = ROOT_PAGES.get(name) or name.removeprefix("docs/")
        return f"{image}[{text}]({'../' * depth}{inside}{anchor})"

    return _LINK.sub(rewritten, markdown)


def examples_page(index: str) -> str:
    """Return the index of the examples with the code of each script below it, as Markdown."""
    lines = [re.sub(r"\]\((\w+)\.py\)", r"](#\1py)", index)]
    for path in sorted((ROOT / "examples").glob("*.py")):
        lines += [f"## {path.name}", "", "```python", path.read_text(encoding="utf-8").strip(), "```", ""]
    return "\n".join(lines)


def commands_page() -> str:
    """Return the reference of every command and option, as Markdown."""
    import typer

    from hnloader.cli.app import app

    group: Any = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        "This page is generated from the code. The guide is [The command line](../cli.md).",
    ]
    for words, command in _commands("hnloader", group):
        lines += ["", f"## {words}", "", *_command(words, command)]
    return "\n".join(lines) + "\n"


def _commands(words: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(f"{words} {name}", command)
        else:
            yield f"{words} {name}", command


def _command(words: str, command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if not hasattr(each, "is_flag")]
    shown = [each.metavar or each.name.upper() for each in arguments]
    yield from ("```", " ".join([words, "[OPTIONS]", *shown]), "```", "")
    yield command.help.replace("\b", "").strip()
    rows = [(f"`{name}`", each) for name, each in zip(shown, arguments, strict=True)]
    rows += [(_spelled(each), each) for each in command.params if hasattr(each, "is_flag") and not each.hidden]
    if rows:
        yield from ("", "| Option | Meaning | Default |", "|---|---|---|")
        for name, each in rows:
            yield f"| {name} | {_cell(each.help or '')} | {_default(each)} |"
    if command.epilog:
        yield from ("", command.epilog)


def _spelled(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or _kind(option)}"
    return ", ".join(f"`{name}{value}`" for name in [*option.opts, *option.secondary_opts])


def _kind(option: Any) -> str:
    annotation = option.type_descriptor.annotation
    inner = next(iter(typing.get_args(annotation)), annotation)
    return {int: "N", float: "X", Path: "PATH"}.get(inner, "TEXT")


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if not option.show_default or option.default is None or option.default is False or option.default in ((), []):
        return ""
    if option.default is True:
        return "on"
    return f"`{option.default}`"


def settings_page() -> str:
    """Return the reference of every training setting, as Markdown."""
    from hnloader.training.config import Config

    lines = [
        "# Training settings",
        "",
        "This page is generated from the code. `hnloader train --init` writes a file with all settings, and "
        "[Train](../training.md) explains the most important ones.",
        *_settings(Config, ""),
    ]
    return "\n".join(lines) + "\n"


def _settings(kind: type, where: str) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    inner = [each for each in dataclasses.fields(kind) if dataclasses.is_dataclass(hints[each.name])]
    yield from ("", f"## `{where}`" if where else "## Top level", "", "| Setting | Values | Default | Meaning |")
    yield "|---|---|---|---|"
    for each in dataclasses.fields(kind):
        if each in inner:
            continue
        rule = each.metadata["rule"]
        shown = list(each.default) if isinstance(each.default, tuple) else each.default
        name = f"{where}.{each.name}" if where else each.name
        default = "" if shown == "" else f"`{str(shown).lower() if isinstance(shown, bool) else shown}`"
        yield f"| `{name}` | {_values(hints[each.name], rule)} | {default} | {_cell(rule.meaning)} |"
    for each in inner:
        yield from _settings(hints[each.name], f"{where}.{each.name}" if where else each.name)


def _values(hint: Any, rule: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"list: {_values(typing.get_args(hint)[0], rule)}"
    if typing.get_args(hint):
        return " or ".join(_values(part, rule) for part in typing.get_args(hint))
    name = {int: "integer", float: "number", str: "text", bool: "true or false"}[hint]
    if hint not in (int, float):
        return name
    least = f" {'above' if rule.above else 'from'} {_number(rule.least)}" if rule.least > float("-inf") else ""
    return f"{name}{least}{f' to {_number(rule.most)}' if rule.most < float('inf') else ''}"


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


class Docstrings(griffe.Extension):
    """Complete docstrings for the site."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Show the section `Example:` as code: griffe calls it `Examples:`."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Show the `code` of an error."""
        code = cls.members.get("code")
        if cls.docstring and isinstance(code, griffe.Attribute) and code.value:
            cls.docstring.value += f"\n\nCode: `{str(code.value).strip(chr(39) + chr(34))}`."
