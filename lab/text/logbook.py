"""Write pages of a lighthouse keeper's log: texts of one plain style, whose sentences a program can recognize."""

from __future__ import annotations

import random
import re
from pathlib import Path

_WINDS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
_SKIES = ("Fog since dawn.", "Rain until noon.", "Sky clear.", "Cloud low over the water.", "Hail on the roof.")
_SHIPS = ("One schooner", "Two trawlers", "A mail boat", "Three barges", "No ship", "A tug with a barge")
_COURSES = ("sighted, bound south.", "passed close.", "answered the lamp.", "seen from the gallery.", "made for port.")
_WORK = (
    "Lamp trimmed and filled.",
    "Lens polished with spirit.",
    "Oil measured, forty gallons left.",
    "Clockwork wound.",
    "Stairs scrubbed.",
    "Foghorn sounded for two hours.",
    "Boat tarred.",
    "Flag mended.",
)
_REMARKS = (
    "Gulls quiet.",
    "Bread baked, the last of the flour.",
    "Letter from the mainland, unopened.",
    "Slept little.",
    "Nothing else to report.",
    "Barometer falling.",
    "A seal on the landing.",
)
# A sentence of the log begins with a time of day.
TIMED = re.compile(r"\b([01]\d|2[0-3]):[0-5]\d\. ")


def page(random_: random.Random) -> str:
    """Return one day of the log."""
    minutes = sorted(random_.sample(range(4 * 60, 23 * 60, 5), 5))
    choices = [
        f"Wind {random_.choice(_WINDS)}, force {random_.randint(1, 9)}. {random_.choice(_SKIES)}",
        f"{random_.choice(_SHIPS)} {random_.choice(_COURSES)}",
        random_.choice(_WORK),
        random_.choice(_REMARKS),
        random_.choice(_WORK),
    ]
    lines = [f"{at // 60:02}:{at % 60:02}. {text}" for at, text in zip(minutes, choices, strict=True)]
    return f"Day {random_.randint(1, 365)} at the light. " + " ".join(lines)


def page_texts(count: int, seed: int) -> list[str]:
    """Return days of the log."""
    random_ = random.Random(seed)
    return [page(random_) for _ in range(count)]


def write_pages(folder: Path, count: int, seed: int = 1) -> Path:
    """Write pages, one in each file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(page_texts(count, seed)):
        (folder / f"{number:03}.txt").write_text(text, encoding="utf-8")
    return folder


def style_share(texts: list[str]) -> float:
    """Return the share of texts in the style of the log: those with two or more times of day."""
    return sum(len(TIMED.findall(text)) >= 2 for text in texts) / len(texts)
