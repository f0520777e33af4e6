"""The flags of bert.py and vit.py are the fields of TrainConfig."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.config.field_docs import describe_field, fields_table
from disttrain.config.flags import parse_flags
from disttrain.config.run_id import run_id
from disttrain.config.train_config import TrainConfig, field_names
from disttrain.errors import UserError
from tests.proofs.random_inputs import RANDOM_EXAMPLES


def test_values_are_read_as_in_yaml() -> None:
    arguments = ["--per_gpu_batch=1", "--setup", "1_1", "--lr", "2e-5", "--architecture", "{hidden_size: 32}"]
    assert parse_flags("bert", arguments) == TrainConfig(
        model="bert", per_gpu_batch=1, setup="1_1", lr=2e-5, architecture={"hidden_size": 32}
    )


def test_string_fields_stay_strings() -> None:
    assert parse_flags("bert", ["--text_column", "1", "--eval_split", "no"]).text_column == "1"


def test_a_number_for_a_field_of_either_kind() -> None:
    """checkpoint_every takes a number of steps, or a text with a unit."""
    for text, value in (("500", 500), ("600s", "600s"), ("1%", "1%")):
        assert parse_flags("bert", ["--checkpoint_every", text]).checkpoint_every == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--per_gpu_bach", "1"], "unrecognized arguments: --per_gpu_bach 1 (did you mean per_gpu_batch?)"),
        (["--learning_rate", "1"], "unrecognized arguments: --learning_rate 1 (did you mean lr?)"),
        (["--warmup-steps=9"], "unrecognized arguments: --warmup-steps=9 (write warmup_ratio, a share of the steps)"),
        (
            ["--lr", "1", "--nproc_per_node=2"],
            "unrecognized arguments: --nproc_per_node=2 (it is an option of torchrun: write it before the script)",
        ),
        (["--ouput_dir=x"], "unrecognized arguments: --ouput_dir=x (did you mean output_dir?)"),
        (["--save_dir=x"], "unrecognized arguments: --save_dir=x (did you mean output_dir?)"),
        (["--step=3"], "unrecognized arguments: --step=3 (--help lists the flags)"),
        (["--colour", "red"], "unrecognized arguments: --colour red (--help lists the flags)"),
        (["train"], "unrecognized arguments: train (--help lists the flags)"),
        (["--lr"], "argument --lr: expected one argument (bert.py --help lists the flags)"),
        (["--lr", "fast"], "--lr: lr is 'fast', not a number (peak learning rate)"),
        (["--lr=--"], "--lr: lr is '--', not a number (peak learning rate)"),
        (["--lr="], "--lr: lr is null, not a number (peak learning rate)"),
        (["--checkpoint="], "--checkpoint: checkpoint is empty (pretrained weights"),
        (["--precision", "bf"], "--precision: precision is 'bf'; choose fp32, tf32, bf16 or fp16 (did you mean bf16?)"),
        (["--max_st", "3"], "unrecognized arguments: --max_st 3 (did you mean max_steps?)"),
    ],
)
def test_mistakes_name_the_flag(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_flags("bert", arguments)
    assert str(caught.value).startswith(message)


ODD_VALUES = [
    "!!int x", "!!float x", "!!bool maybe", "!!timestamp x", "!!python/name:os.system", "[" * 3000, "{" * 3000,
    '"\\U00110000"', '"\\ud800"', "9" * 5000, "9" * 4000, "-" + "9" * 5000, "1e" + "9" * 400, "{a: " + "9" * 5000 + "}",
    "&a [*a]", "&a {x: *a}", "*x", "{[1]: 2}", "a: b: c", "a\n---\nb", "%YAML 9.9\n--- 1", "\x00", "\ud800", "=", "<<",
    "{<<: 3}",
]  # fmt: skip


@pytest.mark.parametrize("value", ODD_VALUES)
def test_odd_value_is_one_short_line(value: str) -> None:
    for name in ("seed", "architecture"):
        with pytest.raises(UserError) as caught:
            parse_flags("bert", [f"--{name}={value}"])
        assert str(caught.value).startswith(f"--{name}: ")
        assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0123x", "--seed: seed is '0123x', not an integer"),
        ("1e3", "--seed: seed is 1e3, not an integer"),
        ("1.0", "--seed: seed is 1.0, not an integer"),
        ("TRUE", "--seed: seed is TRUE, not an integer"),
        ("", "--seed: seed is null, not an integer"),
        ("-01", "--seed: seed is -01; it must be at least 0"),
    ],
)
def test_message_has_what_was_written(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_flags("bert", [f"--seed={text}"])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("model", ["bert", "vit"])
@pytest.mark.parametrize("flags", ["--local-rank=1", "--local-rank 0", "--local_rank=3", "--local_rank 0"])
def test_launchers_local_rank_is_ignored(flags: str, model: str) -> None:
    """torch.distributed.launch and deepspeed add the flag; the environment has the same number."""
    assert parse_flags(model, [*flags.split(), "--seed", "3"]) == TrainConfig(model=model, seed=3)


VALUES = st.sampled_from(ODD_VALUES) | st.text(alphabet="a[]{}!&*: '\"0-9.e\\U\n", max_size=12) | st.text()
FLAGS = st.sampled_from([f"--{name}" for name in field_names()]) | st.text(alphabet="-=a_%", max_size=6)


@settings(max_examples=RANDOM_EXAMPLES)
@given(st.lists(st.tuples(FLAGS, VALUES).map(list) | st.tuples(FLAGS, VALUES).map("=".join) | FLAGS, max_size=4))
def test_any_flags_give_a_config_or_an_error(drawn: list[str | list[str]]) -> None:
    arguments = [text for texts in drawn for text in ([texts] if isinstance(texts, str) else texts)]
    try:
        config = parse_flags("bert", arguments)
    except UserError:
        return
    json.dumps(dataclasses.asdict(config), allow_nan=False).encode()
    assert run_id("1x1", config) == run_id("1x1", config)


def test_every_field_has_a_meaning() -> None:
    for name in field_names():
        assert "; " in describe_field(name), name


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_flags("vit", ["--help"])
    assert caught.value.code == 0
    assert "--warmup_ratio" in capsys.readouterr().out


def test_config_page_is_up_to_date(repository: Path) -> None:
    page = (repository / "docs" / "config.md").read_text(encoding="utf-8")
    assert page.endswith(fields_table()), "python -m disttrain.config.field_docs > docs/config.md"
