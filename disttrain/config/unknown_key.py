"""Hints for an unknown key: the name of another tool, a misspelling, or else the closest keys."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from disttrain.config.synonyms import Place, key_letters, synonym_hint, synonyms

MAX_NAMES = 5  # a longer list of keys is not read

_COMPLETE_LISTS = {
    Place.FLAGS: "--help lists the flags",
    Place.BASE: "docs/config.md lists the fields",
    Place.ENTRY: "docs/config.md lists the fields",
    Place.TOP: "docs/sweep-file.md lists the keys",
    Place.SLURM: "slurm_templates/slurm.yaml lists the keys; sbatch: {OPTION: VALUE} takes any other option",
}
_ELSEWHERE = {
    Place.BASE: "it is a field of the runs: put it under base, or its values under axes",
    Place.TOP: "it is a key of the sweep file: put it at the top level",
    Place.SLURM: "it is a key of the cluster profile: put it under slurm",
}


def suggest_key(
    name: str, known: Collection[str], here: Place, elsewhere: Mapping[Place, Collection[str]] | None = None
) -> str:
    """The hint for an unknown key: at most `MAX_NAMES` keys.

    Args:
        name: The unknown key.
        known: The keys that are accepted here.
        here: Where the key is written.
        elsewhere: The keys that are accepted in other places.

    Example:
        >>> suggest_key("epoch", ["epochs", "lr"], Place.BASE), suggest_key("learning_rate", ["lr"], Place.TOP)
        ('did you mean epochs?', 'did you mean lr under base?')
    """
    places = [_ELSEWHERE[place] for place, names in (elsewhere or {}).items() if name in names]
    if places:
        return "; ".join(places)
    hint = synonym_hint(name, here)
    if hint:
        return hint
    meant = _correct_spelling(name, [*known, *(synonym for synonym in synonyms() if len(synonym) > 5)])
    if meant and meant not in known:
        return synonym_hint(meant, here)
    return suggest_spelling(name, known, _COMPLETE_LISTS[here])


def suggest_spelling(name: str, known: Collection[str], complete_list: str) -> str:
    """The hint for an unknown key without regard to other tools.

    Args:
        name: The unknown key.
        known: The accepted keys.
        complete_list: Where all of them are listed.

    Example:
        >>> suggest_spelling("eval_delay", ["eval_every", "eval_split", "lr"], "docs/config.md lists the fields")
        'closest: eval_every, eval_split; docs/config.md lists the fields'
    """
    meant = _correct_spelling(name, known)
    if meant:
        return f"did you mean {meant}?"
    closest = difflib.get_close_matches(name, known, n=MAX_NAMES, cutoff=0.6)
    if not closest:
        return complete_list
    return f"closest: {', '.join(closest)}; {complete_list}"


def _correct_spelling(name: str, known: Collection[str]) -> str | None:
    """The known name of which this is a misspelling, or the beginning of only one; None if there is no such name.

    One edit is a misspelling; from 14 letters on also two, from 21 on three. difflib's ratio allows more, and takes
    save_steps for max_steps.

    Example:
        >>> [_correct_spelling(name, ["max_steps", "epochs"]) for name in ("max_stesp", "epoc", "save_steps")]
        ['max_steps', 'epochs', None]
    """
    letters = key_letters(name)
    if len(letters) < 3:
        return next((candidate for candidate in known if key_letters(candidate) == letters), None)
    edits = {candidate: _edits(letters, key_letters(candidate)) for candidate in known}
    least = min(edits.values(), default=len(letters))
    if least <= max(1, len(letters) // 7):
        return next(candidate for candidate in known if edits[candidate] == least)
    begun = [candidate for candidate in known if key_letters(candidate).startswith(letters)]
    if len(begun) == 1 and len(letters) * 2 > len(key_letters(begun[0])):
        return begun[0]
    return None


def _edits(left: str, right: str) -> int:
    """The number of edits between two texts: letters inserted, dropped or replaced, and neighbours exchanged.

    Example:
        >>> _edits("tiem", "time"), _edits("save_steps", "max_steps")
        (1, 3)
    """
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, letter in enumerate(left, start=1):
        before, last, row = row, before, [i]
        for j, other in enumerate(right, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other)))
            if min(i, j) > 1 and letter == right[j - 2] and left[i - 2] == other:
                row[j] = min(row[j], last[j - 2] + 1)
    return row[-1]
