"""Hints for an unknown key: the name of another tool, a misspelling, or else the keys that share its words."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from disttrain.config.synonyms import Place, did_you_mean, key_letters, synonym_hint, synonyms

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
_SHORTEST_SYNONYM = 7  # a shorter word is often one letter from another word: layers from lasers

# Words that are spelt correctly, and one or two letters from a word of our keys: mode is not a misspelling of model.
_OTHER_WORDS = frozenset({"mode", "speed", "send", "set", "min", "test", "timer", "tile", "bash", "lrf"})
# Words that many keys have: a key that shares only these with a name does something else.
_COMMON_WORDS = frozenset({
    "n", "num", "max", "min", "per", "every", "by", "step", "lr", "warmup", "ratio", "decay", "weight", "grad", "size",
    "mb", "s", "train", "model", "save", "start", "last", "group", "config", "dir", "type", "gpu", "cpu",
    "network", "time",
})  # fmt: skip
# A user who takes one of these for another field changes the experiment, or what is measured of it.
_ONLY_MISSPELT = frozenset({"max_steps", "timing_warmup_steps"})


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
    hint = synonym_hint(name, here)
    if hint:
        return hint
    elsewhere = elsewhere or {}
    places = [_ELSEWHERE[place] for place, names in elsewhere.items() if name in names]
    if places:
        return "; ".join(places)
    hints = {synonym: synonym_hint(synonym, here) for synonym in synonyms(here)}
    known = [key for key in known if key not in hints]  # the table advises against the others: output_dir in a sweep
    others = {synonym: text for synonym, text in hints.items() if len(key_letters(synonym)) >= _SHORTEST_SYNONYM}
    for place, names in elsewhere.items():
        others = {key: did_you_mean(key, place, here) for key in names if key not in hints} | others
    meant = correct_spelling(name, known, others)
    if meant in others and meant not in known:
        return others[meant]
    return _describe(meant, name, known, _COMPLETE_LISTS[here])


def suggest_spelling(name: str, known: Collection[str], complete_list: str) -> str:
    """The hint for an unknown key without regard to other tools.

    Args:
        name: The unknown key.
        known: The accepted keys.
        complete_list: Where all of them are listed.

    Example:
        >>> suggest_spelling("split_name", ["eval_every", "eval_split", "lr"], "docs/config.md lists the fields")
        'closest: eval_split; docs/config.md lists the fields'
    """
    return _describe(correct_spelling(name, known), name, known, complete_list)


def _describe(meant: str | None, name: str, known: Collection[str], complete_list: str) -> str:
    """The hint for a name of which the correct spelling may be known."""
    if meant:
        return f"did you mean {meant}?"
    closest = [key for key in known if _shares_words(name, key)][:MAX_NAMES]
    if not closest:
        return complete_list
    return f"closest: {', '.join(closest)}; {complete_list}"


def _shares_words(name: str, key: str) -> bool:
    """Whether a key has every word of the name, and one of them is distinctive.

    A key that lacks a word of the name does something else: eval_split is no answer to eval_delay.

    Example:
        >>> [_shares_words(name, "eval_split") for name in ("split", "split_name", "eval_delay", "split_batches")]
        [True, True, False, False]
    """
    words = _words(name) - {"name"}
    return key not in _ONLY_MISSPELT and words <= _words(key) and not words <= _COMMON_WORDS


def _words(name: str) -> frozenset[str]:
    """The words of a name in snake_case, kebab-case or camelCase, without the s of a plural.

    Example:
        >>> sorted(_words("max-steps")), sorted(_words("maxSteps"))
        (['max', 'step'], ['max', 'step'])
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)
    return frozenset(word.lower().removesuffix("s") or "s" for word in words)


def correct_spelling(name: str, known: Collection[str], others: Collection[str] = ()) -> str | None:
    """The name of which this is a misspelling, or the only known name that it begins; None if there is no such name.

    One edit is a misspelling; from 14 letters on also two, from 21 on three. A word that is spelt correctly is what the
    user means: min_train_examples is two edits from max_train_examples, and not a misspelling of it.

    Args:
        name: The unknown key.
        known: The accepted keys, which are preferred.
        others: Other names that have an answer.

    Example:
        >>> [correct_spelling(name, ["max_steps", "epochs"]) for name in ("max_stesp", "epoc", "min_steps")]
        ['max_steps', 'epochs', None]
    """
    letters = key_letters(name)
    candidates = [*known, *others]
    same = [candidate for candidate in candidates if key_letters(candidate) == letters]
    if same or len(letters) < 3:
        return next(iter(same), None)
    vocabulary = _OTHER_WORDS.union(*map(_words, candidates), *map(_words, synonyms(Place.BASE)))
    correct = _words(name) & vocabulary
    edits = {
        candidate: _edits(letters, key_letters(candidate))
        for candidate in candidates
        if _may_be_misspelt(letters, key_letters(candidate)) and correct <= _words(candidate)
    }
    least = min(edits.values(), default=len(letters))
    if least <= max(1, len(letters) // 7):
        return next(candidate for candidate in edits if edits[candidate] == least)
    if len(letters) < 4 or (correct == _words(name) and len(correct) == 1):  # a complete word begins many names
        return None
    begun = [candidate for candidate in known if key_letters(candidate).startswith(letters)]
    if len(begun) == 1 and len(letters) * 2 > len(key_letters(begun[0])):
        return begun[0]
    return None


def _may_be_misspelt(letters: str, key: str) -> bool:
    """Whether letters can be a misspelling of a key: the first letter is right, and all letters of a short name.

    Example:
        >>> [_may_be_misspelt(*pair) for pair in (("batch", "sbatch"), ("lrr", "lr"), ("lrx", "lr"))]
        [False, True, False]
    """
    return letters[0] == key[0] and (len(letters) > 3 or set(letters) == set(key))


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
