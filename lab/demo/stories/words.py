"""The words of the stories, by their part of speech."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FEMALE = _words("Anna Clara Edith Greta Ida Julia Lena Mara Nora Sofia")
MALE = _words("Adam Boris Felix Hugo Jonas Leo Oscar Peter Simon Victor")
NAMES = (*FEMALE, *MALE)

# Nouns with their plurals.
PERSONS = {
    **{
        noun: noun + "s"
        for noun in _words(
            "baker sailor farmer teacher painter tailor hunter doctor miller singer merchant guard shepherd cook"
        )
    },
    "child": "children",
    "thief": "thieves",
}
ANIMALS = {
    **{noun: noun + "s" for noun in _words("dog cat horse owl goat crow bear rabbit donkey")},
    "fox": "foxes",
    "mouse": "mice",
    "wolf": "wolves",
    "goose": "geese",
}
THINGS = _words(
    "lantern key box book map coin bell apple basket letter violin umbrella rope hammer cup coat hat mirror candle "
    "blanket sword flute pearl feather clock drum egg bottle ribbon anvil"
)
# Places by the setting that they belong to.
SETTINGS = {
    "town": _words("market bakery tower bridge square library"),
    "forest": _words("forest clearing oak cabin thicket pond"),
    "mountains": _words("mountain cave pass waterfall valley cliff"),
    "farm": _words("barn mill field orchard stable well"),
    "castle": _words("castle hall gate garden dungeon courtyard"),
    "desert": _words("desert oasis dune camp canyon ruin"),
    "house": _words("kitchen attic cellar staircase fireplace porch"),
    "sea": _words("harbor lighthouse ship beach island pier reef lagoon"),
}
SEA = SETTINGS["sea"]
LAND = tuple(place for setting, places in SETTINGS.items() if setting != "sea" for place in places)
WEATHER = _words("rain wind snow storm fog night winter music")

# Adjectives by what they can describe. In a pair, one of the first kind comes before one of the second.
PERSON_TRAITS = _words("old young tall tired brave clever kind proud shy cheerful")
PERSON_ORIGINS = _words("foreign royal local famous")
ANIMAL_TRAITS = _words("old small large wild hungry clever lazy angry")
ANIMAL_COLORS = _words("white black gray brown")
THING_TRAITS = _words("old small large broken heavy strange lost beautiful")
THING_COLORS = _words("red blue green golden silver")
PLACE_TRAITS = _words("old dark narrow quiet empty distant lonely ancient")
PLACE_LOOKS = _words("sunny misty stony haunted")
WEATHER_TRAITS = _words("cold gentle heavy wild sudden soft")
STATES = _words("happy sad hungry afraid calm lonely curious sleepy tired proud")
CONDITIONS = _words("cold dark warm quiet misty windy")
ADJECTIVES = frozenset(
    (
        *PERSON_TRAITS,
        *PERSON_ORIGINS,
        *ANIMAL_TRAITS,
        *ANIMAL_COLORS,
        *THING_TRAITS,
        *THING_COLORS,
        *PLACE_TRAITS,
        *PLACE_LOOKS,
        *WEATHER_TRAITS,
        *STATES,
        *CONDITIONS,
    )
)


def _forms(text: str) -> tuple[tuple[str, str, str], ...]:
    """Return (waits, wait, waited) for "wait", and for "sleep/slept" with another past."""
    forms = []
    for item in text.split():
        base, _, past = item.partition("/")
        if base.endswith("y") and base[-2] not in "aeou":
            singular, regular = base[:-1] + "ies", base[:-1] + "ied"
        else:
            singular = base + ("es" if base.endswith(("s", "sh", "ch")) else "s")
            regular = base + ("d" if base.endswith("e") else "ed")
        forms.append((singular, base, past or regular))
    return tuple(forms)


# Verbs as (present with one subject, present with many, past).
RESTING = _forms("wait sleep/slept rest sing/sang laugh dance listen dream smile work shiver whistle")
MOVING = _forms("walk run/ran travel hurry wander march return creep/crept")
HANDLING = _forms(
    "find/found see/saw carry hide/hid clean paint admire steal/stole buy/bought keep/kept drop/dropped lift want "
    "touch forget/forgot draw/drew"
)
MEETING = _forms("greet follow meet/met help watch call thank hear/heard")
GIVING = _forms("give/gave show sell/sold bring/brought offer send/sent")
SEEMING = _forms("seem")
LOOKING = _forms("look feel/felt")
HAPPENING = _forms("come/came end begin/began fade return stop/stopped")
REMEMBERING = _forms("remember")
THINKING = _forms("know/knew think/thought believe")
BEING = (("is", "are", "was"),)  # "were" is the past with many
VERBS = (
    *RESTING,
    *MOVING,
    *HANDLING,
    *MEETING,
    *GIVING,
    *SEEMING,
    *LOOKING,
    *HAPPENING,
    *REMEMBERING,
    *THINKING,
    *BEING,
)
PRESENT = frozenset((*(form for verb in VERBS for form in verb[:2]), "happens", "will", "be"))  # and future
PAST = frozenset((*(verb[2] for verb in VERBS), "were", "happened"))

CONJUNCTIONS = _words("because since when while after before until")
CONDITIONALS = _words("if although whenever")
COMMENTS = _words("surely clearly luckily")
HEDGES = ("perhaps", "maybe", "it seems that")
