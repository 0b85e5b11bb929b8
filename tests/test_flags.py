"""Flags from the fields of settings: each has one, with its comment as help and its default."""

import argparse
import dataclasses
from functools import partial

import pytest

from minids import flags
from minids.posttrain.distill import DistillConfig
from minids.posttrain.grpo import GRPOConfig
from minids.posttrain.sft import SFTConfig
from minids.pretrain.settings import TrainConfig

ALL = (TrainConfig, SFTConfig, GRPOConfig, DistillConfig)


def parse(settings, *argv) -> dict:
    """The fields that a command line gives, lists as the tuples that settings make of them."""
    parser = argparse.ArgumentParser()
    flags.add_flags(parser, settings, leave_out=("stages",))
    values = flags.given(parser.parse_args(argv), settings)
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def flag(field) -> str:
    return "--" + field.name.replace("_", "-")


@pytest.mark.parametrize("settings", ALL)
def test_every_field_is_a_flag_that_reads_its_own_default(settings):
    """Nothing given sets nothing; the default, typed, is the default again, of the same type."""
    assert parse(settings) == {}
    for field in dataclasses.fields(settings):
        if isinstance(field.default, bool):
            assert parse(settings, flag(field)) == {field.name: True}
            assert parse(settings, flag(field).replace("--", "--no-")) == {field.name: False}
        elif field.name != "stages" and field.default not in (dataclasses.MISSING, ()):
            value = parse(settings, flag(field), *flags.typed(field.default).split())[field.name]
            assert value == field.default and type(value) is type(field.default), field.name


@pytest.mark.parametrize("settings", ALL)
def test_the_help_of_a_flag_is_its_comment_and_its_default(settings, capsys):
    with pytest.raises(SystemExit):
        parse(settings, "--help")
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(settings):
        comment = flags.comments(settings)[field.name]
        assert comment, f"{settings.__name__}.{field.name} has no comment"
        if field.name != "stages":
            assert comment + flags.default_text([field.default]) in text


def test_a_flag_takes_none_where_its_field_does():
    optional = [field for field in dataclasses.fields(GRPOConfig) if "None" in str(field.type)]
    assert len(optional) == 2
    for field in optional:
        assert parse(GRPOConfig, flag(field), "none") == {field.name: None}
        assert parse(GRPOConfig, flag(field), "0.5") == {field.name: 0.5}


def test_a_comment_goes_on_in_the_next_line_and_is_inherited():
    @dataclasses.dataclass
    class Parent:
        lr: float = 0.5         # the learning rate,
                                # at its peak: 100 % of it
        # not a comment of a field
        steps: int = 1          # of the optimiser

    @dataclasses.dataclass
    class Child(Parent):
        steps: int = 2

    assert flags.comments(Child) == {"lr": "the learning rate, at its peak: 100 % of it",
                                     "steps": "of the optimiser"}
    parser = argparse.ArgumentParser(formatter_class=partial(argparse.HelpFormatter, width=200))
    flags.add_flags(parser, Child, presets=[Child(), Child(lr=1.0)])
    assert "100 % of it (default by preset: 0.5, 1.0)" in parser.format_help()
    assert "of the optimiser (default: 2)" in parser.format_help()
