"""The exercises of lessons 02 to 08 are the functions of minids.plain."""

import ast
from functools import cache

import pytest
import torch
from tiny import SMALL
from twin import lively

from minids import plain
from minids.learn import checks, course
from minids.learn.checks import PARTS, attention, csa, find, hca, mhc, moe, whole
from minids.learn.judge import _differ, cases
from minids.system import paths

LESSON_OF = {name: lesson for lesson, names in checks.lessons().items() for name in names}


def test_parts_are_checks_and_functions_of_plain():
    assert set(PARTS) <= set(LESSON_OF)
    assert set(PARTS.values()) <= set(plain.FUNCTIONS)


@pytest.mark.parametrize("name", [name for name in PARTS if name != "whole.safe_affinity"])
def test_the_reference_is_the_function_of_plain(name):
    assert find(name).reference is plain.FUNCTIONS[PARTS[name]]


@pytest.mark.parametrize("name, version", [
    ("attention.queries", attention.queries_with),
    ("attention.layer", attention.window_attention_with),
    ("attention.yarn", attention.frequencies_with),
    ("hca.compress", hca.compress_with),
    ("hca.place", hca.place_with),
    ("hca.attend", hca.attend_with),
    ("hca.layer", hca.hca_attention_with),
    ("csa.compress", csa.compress_overlapped_with),
    ("csa.scores", csa.index_scores_with),
    ("csa.pick", csa.pick_with),
    ("moe.route", moe.route_with),
    ("moe.expert", moe.expert_forward_with),
    ("moe.grouped", moe.grouped_with),
    ("mhc.sinkhorn", mhc.sinkhorn_with),
    ("mhc.maps", mhc.maps_with),
    ("whole.block", whole.block_forward_with),
    ("whole.forward", whole.model_forward_with),
])
def test_a_version_that_makes_mistakes_makes_none_by_itself(name, version):
    exercise = find(name)
    for label, args in cases(exercise):
        assert _differ(exercise, version(*args), exercise.reference(*args)) is None, label


@cache
def solutions(lesson):
    """{check: the function that the teacher's edition of a lesson hands to it}.

    Runs the imports, definitions and checks of the lesson, and nothing else.
    """
    source = paths.NOTEBOOKS / "source" / f"{lesson}.py"
    solved, space = {}, {"__name__": lesson}
    for cell in course.edition(source, "teacher").cells:
        if cell.cell_type != "code":
            continue
        for statement in ast.parse(cell.source).body:
            if isinstance(statement, ast.Import | ast.ImportFrom | ast.FunctionDef):
                exec(compile(ast.Module([statement], []), lesson, "exec"), space)
            for call in ast.walk(statement):
                if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "check":
                    name, attempt = call.args
                    while isinstance(attempt, ast.Call):         # with_gradient(affinity)
                        attempt, = attempt.args
                    solved[name.value] = space[attempt.id]
    return solved


@torch.no_grad()
@pytest.mark.parametrize("name", PARTS)
def test_the_lessons_solution_is_a_part_of_the_model(name):
    model = lively(SMALL, 7)
    ids = torch.randint(0, SMALL.vocab_size, (2, 60), generator=torch.Generator().manual_seed(0))
    mine = plain.Model(SMALL, **{PARTS[name]: solutions(LESSON_OF[name])[name]})
    mine.load_state_dict(model.state_dict())
    torch.testing.assert_close(mine(ids), model(ids), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_all_solutions_together_are_the_model():
    model = lively(SMALL, 8)
    ids = torch.randint(0, SMALL.vocab_size, (2, 60), generator=torch.Generator().manual_seed(0))
    parts = {part: solutions(LESSON_OF[name])[name] for name, part in PARTS.items()}
    mine = plain.Model(SMALL, **parts)
    mine.load_state_dict(model.state_dict())
    torch.testing.assert_close(mine(ids), model(ids), atol=1e-4, rtol=1e-4)
