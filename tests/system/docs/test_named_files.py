"""Documents name and link files that exist, also for readers of the repository, who do not see the built site."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.paths import ROOT

DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "lab").rglob("*.md")})
_PATH = re.compile(
    r"(?<![\w/.~-])((?:docs|tests|lab|hnloader|extension|examples|scripts)/[\w./-]*?\.(?:py|md|json|png|js|log|yml))\b"
)
_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
# Files that a reader of the page writes, or that hnloader writes.
INVENTED = ("extension/hosts/example/", "hnloader/hashes.json")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


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
        for target, anchor in _LINK.findall(text):
            path = document.parent / target if target else document
            if "://" in target or (path.exists() and (path.suffix != ".md" or not anchor or anchor in anchors(path))):
                continue
            broken.append(f"{document.relative_to(ROOT)}: {target}#{anchor}")
    assert broken == []
