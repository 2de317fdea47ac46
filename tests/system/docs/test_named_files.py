"""Documents name files that exist."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "lab").rglob("*.md")})
_PATH = re.compile(
    r"(?<![\w/.~-])((?:docs|tests|lab|hnloader|extension|examples|scripts)/[\w./-]*?\.(?:py|md|json|png|js|log|yml))\b"
)
# Files that a reader of the page writes, or that hnloader writes.
INVENTED = ("extension/hosts/example/", "hnloader/hashes.json")


def test_documents_name_files_that_exist() -> None:
    missing = []
    for document in DOCUMENTS:
        for name in _PATH.findall(document.read_text(encoding="utf-8")):
            if not name.startswith(INVENTED) and not (ROOT / name).exists():
                missing.append(f"{document.relative_to(ROOT)}: {name}")
    assert missing == []
