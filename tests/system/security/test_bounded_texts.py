"""Values from untrusted files become text only through `hnloader.texts`, which bounds length, time and memory."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT

# What the user typed, names of options, and what hnloader or Python itself made: by module, as the code writes it.
OWN = {
    "hnloader/__init__.py": {"__name__", "name"},
    "hnloader/activations.py": {"close[0]", "name"},
    "hnloader/attention/attach.py": {"self", "close[0]", "which", "items"},
    "hnloader/attention/strengths.py": {"pattern", "close[0]"},
    "hnloader/cli/conversion_options.py": {"given", "report.suffix"},
    "hnloader/cli/export_lora_command.py": {"text", "grid.suffix"},
    "hnloader/cli/generate_command.py": {"text"},
    "hnloader/cli/merge_command.py": {"text", "mode"},
    "hnloader/cli/shared_options.py": {"text"},
    "hnloader/cli/train_command.py": {"each", "config.output", "output"},
    "hnloader/conversion/__init__.py": {"__name__", "name"},
    "hnloader/conversion/lora/base_model.py": {"path.suffix"},
    "hnloader/conversion/lora/decoder_export.py": {"options.kind"},
    "hnloader/conversion/lora/export.py": {"path.suffix"},
    "hnloader/conversion/lora/layer_names.py": {"name"},
    "hnloader/conversion/lora/lora_options.py": {"self.rank", "self.fidelity"},
    "hnloader/conversion/preparing.py": {"name"},
    "hnloader/conversion/reports.py": {"suffix"},
    "hnloader/families.py": {"family.name"},
    "hnloader/formats/registry.py": {"suffix", "name", "self.name", "file_format.name"},
    "hnloader/formats/hns.py": {"mark", "name", "text", "float(strength)"},  # which are written into a file
    "hnloader/prompt.py": {"float(value)"},
    "hnloader/conversion/merging.py": {"mode", "dtype"},
    "hnloader/language_models.py": {"path.suffix"},
    "hnloader/pipelines.py": {"name"},
    "hnloader/ui/diffusers_generator.py": {"name", "self._chosen"},
    "hnloader/ui/language_writer.py": {"name"},
    "hnloader/ui/pages/convert_page.py": {"target"},
    "hnloader/scopes.py": {"str(self)"},
    "hnloader/ui/training_runs.py": {"_REQUIRED", "name", "files.name"},
}
# `str` of these is bounded: paths, sizes, our own errors and classes.
OWN_TEXTS = {
    *("path", "paths", "source", "target", "folder", "root", "own", "checkpoint", "written", "message", "error"),
    *("width", "text", "tag", "strength", "pattern", "seed", "size", "dtype", "came", "largest", "cell", "each"),
    *("file.path", "one.path", "entry.path", "self.path", "member", "entry.size", "result.source", "result.target"),
    *("files.output", "folder.absolute()", "path.absolute()", "files.config.absolute()", "pipeline_folder()"),
    *("info.architecture", "made.hypernetwork.architecture", "b.architecture", "info.architecture or 'composition'"),
    *(
        "own.dtype",
        "ready.dtype",
        "tensor.dtype",
        "weight.dtype",
        "explanation",
        "self.dtype",
        "first.width",
        "site.index",
        "job.exact",
        "next(iter(ranks))",
    ),
    *("self.dtype", "version.startswith('sd_v2')"),
    *("named", "known[-1]", "one.file", "found.path", "image.info.get('parameters') or ''"),
    *(
        "Tag(name, float(strength))",
        "len(row)",
        "int(value)",
        "len(self.tensors)",
        "settings.steps",
        "family == 'SD 2'",
        "error.strerror",
        "c",
    ),
    *("infotext", "made.infotext", "self.output()", "self.file(name).path", "library.find(name)", "self.source"),
    *("path.with_suffix('')", "entry.path", "one.error", "match.lastgroup", "found", "ast.literal_eval(text)"),
    *("own or path.with_name(f'{path.stem}.preview.{shared.opts.samples_format}')", "Tag(name, strength)"),
    *("Tag(name, 0.125)", "Tag(without_hash(name)[0], float(strength))", "replace(one.tag, name=one.name)"),
    *("replace(tag, name=self._extension.library.name_of(path))", "image.info.get('parameters', '')"),
    "Tag(tag_name(entry, catalog), strength_in(read_values(entry.path)) or 1.0)",
    # Settings and arguments of the program around us.
    *(
        "self.option(_QUICK, None) or _NOTHING",
        "self.option('hnloader_folders', '')",
        "getattr(flags, name, None) or ''",
        "getattr(forge_version, 'version', '')",
    ),
    *("fields.get('Prompt', '')", "fields.get(HASHES, '')", "fields.get(OLD_HASH, '')", "name", "key", "job['name']"),
    *("fields.get(OLD_STRENGTH, '1.0')", "given.get(key) or ''", "LEGACY_MAGIC_NUMBER"),
    "getattr(one.hypernetwork, 'name', '')",
    *("received", "folders", "preview", "replace(tag, name=self._library.current.name_of(path))"),
    "preview or path.with_name(f'{path.stem}.preview.{shared.opts.samples_format}')",
    "getattr(shared.opts, QUICK_SETTING, None) or NO_HYPERNETWORK",
    "files[0] if len(files) == 1 else files[0].parent",
    "self",
    "json.loads(read_regular(index)).get('_class_name')",
    # A scope checks its numbers when it is made.
    *(
        "scope",
        "scopes",
        "whole",
        "self.width",
        "self._scopes",
        "each.scopes",
        "contents.scopes",
        "hypernetwork.scopes",
    ),
    # Of `map`.
    *(
        "folders or ()",
        "host.folders()",
        "self._entries",
        "sorted(set(widths))",
        "places",
        "tags",
        "tag.blocks",
        "self.blocks",
    ),
    "cast('Sequence[object]', result.details.get(key, ()))",
}
# Names under which modules keep values from files: not even `{value}`.
TREES = {"value", "values", "tree", "metadata", "stated", "about", "header", "obj"}
# What reads no stranger's file: its own configurations, images and models.
OTHERS = ("hnloader/demo/", "hnloader/training/", "hnloader/texts.py")
READERS = ("hnloader/formats/", "hnloader/inspection.py", "hnloader/ui/index.py", "hnloader/ui/markup.py", "extension/")


def unbounded(code: str, module: str) -> Iterator[tuple[int, str]]:
    """(line, code) of each value that becomes text in another way."""
    own = OWN.get(module, set())
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FormattedValue):
            written = ast.unparse(node.value)
            if node.conversion in (ord("r"), ord("a")) and written not in own:
                yield node.lineno, f"{{{written}!r}}"
            plain = node.conversion in (-1, ord("s")) and node.format_spec is None
            if plain and module.startswith(READERS) and isinstance(node.value, ast.Name) and node.value.id in TREES:
                yield node.lineno, f"{{{written}}}"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and isinstance(node.left, ast.Constant):
            if isinstance(node.left.value, str):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = [ast.unparse(each) for each in node.args]
            if (
                (name in ("repr", "ascii", "format", "reprlib.repr", "pprint.pformat") and given[0] not in own)
                or (name == "str" and given and given[0] not in OWN_TEXTS)
                or (name == "map" and given[0] in ("str", "repr", "ascii") and given[1] not in OWN_TEXTS)
                or (isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "__str__", "__repr__"))
            ):
                yield node.lineno, ast.unparse(node)


def test_modules_show_untrusted_values_only_through_texts() -> None:
    paths = [path for place in ("hnloader", "extension") for path in sorted((ROOT / place).rglob("*.py"))]
    assert len(paths) > 100
    found = []
    for path in paths:
        module = path.relative_to(ROOT).as_posix()
        if not module.startswith(OTHERS):
            found += [f"{module}:{line}: {what}" for line, what in unbounded(path.read_text(encoding="utf-8"), module)]
    assert found == []


@pytest.mark.parametrize(
    "code",
    ["repr(tree)", "f'{tree!r}'", "f'{tree!a}'", "f'{value}'", "f'{metadata!s}'", "str(tree[0])", "'%r' % tree",
     "'%s' % (tree,)", "'{}'.format(tree)", "map(str, tree)", "tree.__repr__()", "f'{x:{tree!r}}'"],
)  # fmt: skip
def test_rule_finds_unbounded_text(code: str) -> None:
    assert list(unbounded(code, "hnloader/formats/new.py"))


@pytest.mark.parametrize("code", ["shown(tree)", "f'{shown(tree)}'", "str(path)", "f'{path}'", "f'{value:,}'", "x % 8"])
def test_rule_accepts_bounded_text(code: str) -> None:
    assert not list(unbounded(code, "hnloader/formats/new.py"))
