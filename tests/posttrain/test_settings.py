"""The comment on a setting is the help text of its command-line option."""

import dataclasses
import inspect
import re

import pytest

from minids.posttrain.distill import DistillConfig
from minids.posttrain.grpo import GRPOConfig
from minids.posttrain.settings import PostTrainConfig
from minids.posttrain.sft import SFTConfig
from minids.pretrain.settings import RunSettings, Stage, TrainConfig
from minids.recipes.lifecycle import Plan

CLASSES = (RunSettings, TrainConfig, PostTrainConfig, SFTConfig, GRPOConfig, DistillConfig, Stage,
           Plan)


@pytest.mark.parametrize("settings", CLASSES, ids=lambda settings: settings.__name__)
def test_every_setting_has_a_comment_on_its_line(settings):
    lines = inspect.getsource(settings).splitlines()
    for name in inspect.get_annotations(settings):
        line, = (line for line in lines if re.match(rf"    {name}: ", line))
        assert re.search(r"  # \S.{10,}", line), line


def test_a_setting_means_the_same_in_all_runs():
    """Fields that several classes define have one type."""
    types = {}
    for settings in CLASSES[:6]:
        for field in dataclasses.fields(settings):
            types.setdefault(field.name, set()).add(str(field.type))
    assert {name: kinds for name, kinds in types.items() if len(kinds) > 1} == {}
