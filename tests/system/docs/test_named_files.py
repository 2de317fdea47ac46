"""Documents name and link files that exist, also for readers of the repository, who do not see the built site."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "lab").rglob("*.md")})
_PATH = re.compile(
    r"(?<![\w/.~-])((?:docs|tests|lab|hnloader|extension|examples|scripts)/[\w./-]*?\.(?:py|md|json|png|js|log|yml))\b"
)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
# Files that a reader of the page writes, or that hnloader writes.
INVENTED = ("extension/hosts/example/", "hnloader/hashes.json")


def test_documents_name_files_that_exist() -> None:
    missing = []
    for document in DOCUMENTS:
        for name in _PATH.findall(document.read_text(encoding="utf-8")):
            if not name.startswith(INVENTED) and not (ROOT / name).exists():
                missing.append(f"{document.relative_to(ROOT)}: {name}")
    assert missing == []


def test_links_lead_to_files_that_exist() -> None:
    broken = []
    for document in [*DOCUMENTS, ROOT / "examples" / "README.md"]:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in _LINK.findall(text):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert broken == []
