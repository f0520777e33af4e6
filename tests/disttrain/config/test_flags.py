"""The flags of bert.py and vit.py are the fields of TrainConfig."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.config.field_docs import describe_field, fields_table
from disttrain.config.flags import parse_flags
from disttrain.config.train_config import TrainConfig, field_names
from disttrain.errors import UserError


def test_values_are_read_as_in_yaml() -> None:
    arguments = ["--per_gpu_batch=1", "--setup", "1_1", "--lr", "2e-5", "--architecture", "{hidden_size: 32}"]
    assert parse_flags("bert", arguments) == TrainConfig(
        model="bert", per_gpu_batch=1, setup="1_1", lr=2e-5, architecture={"hidden_size": 32}
    )


def test_string_fields_stay_strings() -> None:
    assert parse_flags("bert", ["--text_column", "1", "--eval_split", "no"]).text_column == "1"


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
        (["--lr", "fast"], "--lr: lr is 'fast', not a number (peak learning rate of AdamW)"),
        (["--precision", "bf"], "--precision: precision is 'bf'; choose fp32 or bf16 (did you mean bf16?)"),
        (["--max_st", "3"], "unrecognized arguments: --max_st 3 (did you mean max_steps?)"),
    ],
)
def test_mistakes_name_the_flag(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_flags("bert", arguments)
    assert str(caught.value).startswith(message)


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
