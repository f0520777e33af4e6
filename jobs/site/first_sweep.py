"""The first sweep that `sweep init` writes: the user's own command, or a small BERT on texts that it writes too."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.planning.allocation import Allocation
from jobs.site.choices import Choices
from jobs.site.profile_text import yaml_pair
from jobs.site.site_facts import SiteFacts

# The allocations of the study, and 1x2 for a partition that cannot give 1x4.
_WITH_GPUS = ("1x1", "1x4", "1x2", "2x2", "2x1")
_WITHOUT = ("1x1", "1x2", "2x1")
_TIME = "00:10:00"

_NOUNS = ("film", "plot", "cast", "score", "story", "ending", "script", "camera", "pace", "humour", "dialogue", "hero")
_ADVERBS = ("quite", "really", "simply", "often", "truly")
_ADJECTIVES = {
    1: ("moving", "funny", "clever", "warm", "brilliant", "charming"),
    0: ("dull", "tired", "clumsy", "cold", "hollow", "confused"),
}
_DEV_EVERY = 5


def possible_allocations(facts: SiteFacts, choices: Choices) -> tuple[str, ...]:
    """The usual allocations that the chosen partition can give; 1x1 if its nodes are not known.

    On a partition without GPUs, each rank has CPU cores in place of a GPU.
    """
    partition = facts.partition_or_default(choices.partition)
    if partition is None or not partition.node_kinds:
        return _WITH_GPUS[:1]
    if not partition.count_gpus(choices.gpu_type):
        most = min(partition.nodes, partition.max_nodes or partition.nodes)
        return tuple(text for text in _WITHOUT if Allocation.parse(text).nodes <= most)
    given = [text for text in _WITH_GPUS if partition.can_give(Allocation.parse(text), choices.gpu_type)]
    if "1x4" in given and "1x2" in given:
        given.remove("1x2")
    return tuple(given) or _WITH_GPUS[:1]


def first_sweep(
    file: str, cluster: str, allocations: Sequence[str], *, command: str | None = None, texts: str = ""
) -> str:
    """The text of the sweep file.

    Args:
        file: Its path.
        cluster: The name of the profile.
        allocations: Its allocations.
        command: The user's own command; None for a small BERT.
        texts: The path of the folder of texts, for the BERT.
    """
    about, body = "a small BERT, trained from scratch on made-up texts; it needs no hub", _bert(texts)
    if command is not None:
        about, body = "your own script", _command(command)
    return (
        f"# The first sweep on {cluster}: {about}.\n"
        "#\n"
        f"#   sweep doctor {file} --cluster {cluster}\n"
        f"#   sweep plan {file} --cluster {cluster}\n"
        f"#   sweep submit {file} --cluster {cluster} --smoke\n"
        "#   sweep status\n"
        "#   sweep collect\n"
        f"{yaml_pair('name', Path(file).stem)}\n"
        f"allocations: [{', '.join(allocations)}]   # nodes x GPUs per node; each GPU gets one rank\n"
        f"{body}"
        f'slurm: {{time: "{_TIME}"}}         # in place of the time of the profile\n'
    )


def _bert(texts: str) -> str:
    return f"""base:
  model: bert
  architecture: {{hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 128,
    vocab_size: 500, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}}
  {yaml_pair("dataset", texts)}       # also a csv, tsv, parquet or json file, or a hub id
  per_gpu_batch: 16
  epochs: 4
axes:
  lr: [1e-3, 3e-3]              # every value on every allocation
"""


def _command(command: str) -> str:
    return f"""{yaml_pair("command", command)}   # starts in the folder in which you call sweep
# axes: {{lr: [1e-3, 3e-3]}}      # every combination becomes flags: --lr 0.001
"""


def first_texts() -> Mapping[str, str]:
    """The files of the texts by name: sentences about films, with 1 for praise and 0 for blame.

    Example:
        >>> first_texts()["dev.tsv"].splitlines()[:2], sum(text.count("\\n") - 1 for text in first_texts().values())
        (['sentence\\tlabel', 'the film was quite moving\\t1'], 720)
    """
    rows = [
        f"the {noun} was {adverb} {adjective}\t{label}"
        for label, adjectives in _ADJECTIVES.items()
        for noun, adverb, adjective in itertools.product(_NOUNS, _ADVERBS, adjectives)
    ]
    dev = rows[::_DEV_EVERY]
    train = [row for index, row in enumerate(rows) if index % _DEV_EVERY]
    return {
        f"{name}.tsv": "".join(f"{line}\n" for line in ("sentence\tlabel", *found))
        for name, found in (("train", train), ("dev", dev))
    }
