"""The built lessons (lint, drift, solutions and their checks), and the code that builds them."""

import ast
import json
import tomllib

import nbformat
import pytest
from packaging.requirements import Requirement

from minids.errors import MinidsError
from minids.learn import checks, course, lint
from minids.system import paths

LESSONS = course.sources()
each_lesson = pytest.mark.parametrize("source", LESSONS, ids=[path.stem for path in LESSONS])


@pytest.mark.slow
@each_lesson
def test_a_built_lesson_has_no_findings(source):
    assert lint.lint([source.stem]) == []


@pytest.mark.slow
@each_lesson
def test_solutions_pass_their_checks(source, monkeypatch):
    """Run definitions, constants, imports and checks of the teacher's edition, in order.

    In strict mode a check raises if it does not pass.
    """
    monkeypatch.setenv("MINIDS_STRICT", "1")
    space = {"__name__": source.stem}
    for cell in course.edition(source, "teacher").cells:
        if cell.cell_type != "code":
            continue
        for statement in ast.parse(cell.source).body:
            if _calls_check(statement) or _is_definition(statement):
                exec(compile(ast.Module([statement], []), source.name, "exec"), space)


def _calls_check(statement) -> bool:
    calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return any(getattr(call.func, "id", None) == "check" for call in calls)


def _is_definition(statement) -> bool:
    """Whether a statement is an import, a definition, or a constant under a plain name."""
    if isinstance(statement, ast.Assign):
        places = (ast.Attribute, ast.Subscript)
        plain = not any(isinstance(node, places) for node in ast.walk(statement))
        return plain and _is_literal(statement.value)
    return isinstance(statement, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))


def _is_literal(node) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def test_every_check_belongs_to_a_lesson_that_calls_it():
    for lesson, names in checks.lessons().items():
        source = paths.NOTEBOOKS / "source" / f"{lesson}.py"
        if source.exists():
            text = source.read_text(encoding="utf-8")
            assert [name for name in names if f'check("{name}"' not in text] == []


TINY = '''# %% [markdown]
# # A tiny lesson
# After this you can build a lesson.

# %%
import math

print("rounded", math.ceil(2.5))

# %%
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION


# %% tags=["solution"]
print(double(21))

# %%
print("one", end=" ")
print("two")

# %% tags=["nbval-ignore-output"] jupyter={"source_hidden": true}
import ipywidgets

ipywidgets.IntSlider(3)

# %% jupyter={"outputs_hidden": true}
print("one", end=" ")
print("two")

# %% [markdown]
# ## Key points
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes the source of lesson 99 into an empty course; returns its path."""
    (tmp_path / "notebooks" / "source").mkdir(parents=True)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")

    def write(text, name="99_tiny"):
        path = tmp_path / "notebooks" / "source" / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        return path
    return write


def test_editions_differ_in_solutions_only(write):
    learner, teacher = (course.edition(write(TINY), which) for which in course.EDITIONS)
    common = [c.id for c in teacher.cells if "solution" not in c.metadata.get("tags", [])]
    assert common == [c.id for c in learner.cells]
    ids = {cell.id for cell in teacher.cells}
    assert len(ids) == len(teacher.cells)       # two equal cells have two ids
    assert "2 * x" not in json.dumps(learner) and "double(21)" not in json.dumps(learner)
    space = {}
    exec(next(cell.source for cell in learner.cells if "def double" in cell.source), space)
    with pytest.raises(NotImplementedError):
        space["double"](1)
    exec(next(cell.source for cell in teacher.cells if "def double" in cell.source), space)
    assert space["double"](4) == 8
    assert learner.cells[4].metadata == {"jupyter": {"source_hidden": True},
                                         "tags": ["nbval-ignore-output"]}
    assert learner.cells[5].metadata == {"jupyter": {"outputs_hidden": True}}


@pytest.mark.slow
def test_outputs_are_kept_where_only_texts_have_changed(write):
    source = write(TINY)
    course.build()
    before = {which: nbformat.read(course.target(source, which), 4) for which in course.EDITIONS}
    write(TINY.replace("you can build a lesson", "you can fix a text"))
    course.build(run=False, keep=True)
    for which, old in before.items():
        new = nbformat.read(course.target(source, which), 4)
        assert "fix a text" in new.cells[0].source
        assert not lint.drift(source, which, new)
        assert new.cells[1:] == old.cells[1:]
    # Only the teacher's code has changed now, so the learner's outputs are kept.
    write(TINY.replace("double(21)", "double(4)"))
    course.build(keep=True)
    learner, teacher = (nbformat.read(course.target(source, which), 4)
                        for which in course.EDITIONS)
    assert learner.cells[1:] == before["learner"].cells[1:]
    changed = [cell for cell in teacher.cells if cell.source == "print(double(4))"]
    assert [cell.outputs[0].text for cell in changed] == ["8\n"]


@pytest.mark.slow
def test_building_twice_gives_the_same_files_which_pass_the_lint(write):
    write(TINY)
    first = {path: path.read_bytes() for path in course.build()}
    assert {path: path.read_bytes() for path in course.build()} == first and len(first) == 2
    assert lint.lint() == []
    teacher = nbformat.read(paths.NOTEBOOKS.parent / "teaching" / "99_tiny.ipynb", as_version=4)
    outputs = [cell.outputs for cell in teacher.cells if cell.cell_type == "code"]
    assert [out.text for out in outputs[0]] == ["rounded 3\n"]
    assert [out.text for out in outputs[2]] == ["42\n"]
    assert [out.text for out in outputs[3]] == ["one two\n"]
    # The widget's handle is removed.
    assert dict(outputs[4][0].data) == {"text/plain": "IntSlider(value=3)"}


def test_a_change_of_the_source_is_drift(write):
    source = write(TINY)
    learner = course.target(source, "learner")
    course.build(run=False)
    built = nbformat.read(learner, 4)
    assert lint.drift(source, "learner", built) == []
    for changed in (TINY.replace("Twice", "Double"),
                    TINY.replace('tags=["nbval-ignore-output"] ', ""),
                    TINY + "# more\n"):
        write(changed)
        assert "course build 99_tiny" in lint.drift(source, "learner", built)[0]


@pytest.mark.slow
def test_a_failing_cell_is_named_and_nothing_is_written(write):
    write("# %% [markdown]\n# # Fails\n\n# %%\nx = 1\n\n# %%\ny = x / 0\n")
    message = r"99_tiny .*cell 3 failed: ZeroDivisionError: division by zero.*'y = x / 0'"
    with pytest.raises(MinidsError, match=message):
        course.build()
    assert list(paths.NOTEBOOKS.rglob("*.ipynb")) == []


@pytest.mark.parametrize("text, message", [
    ("# %%\n### BEGIN SOLUTION\nx = 1\n", "each '### BEGIN SOLUTION' needs its"),
    ('# %% tags=["soluton"]\nx = 1\n', "unknown tag 'soluton'"),
    ("", "has no cells"),
])
def test_a_source_with_a_mistake_is_refused(write, text, message):
    with pytest.raises(MinidsError, match=message):
        course.edition(write(text), "learner")


def test_a_name_that_no_lesson_has_is_refused(write):
    source = write(TINY)
    assert course.sources(["99"]) == course.sources(["notebooks/99_tiny.ipynb"]) == [source]
    with pytest.raises(MinidsError, match="no lesson '42': expected one of 99_tiny"):
        course.sources(["42"])
    optional = write(TINY, "99_tiny_deeper")
    assert course.sources(["99"]) == [source, optional]
    assert course.sources(["99_tiny"]) == [source]


def code(source, *outputs, **metadata):
    return nbformat.v4.new_code_cell(source, execution_count=1, outputs=list(outputs),
                                     metadata=metadata)


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def data(mime, value, **metadata):
    return nbformat.v4.new_output("display_data", data={mime: value}, metadata=metadata)


@pytest.mark.parametrize("cell, finding", [
    (code("print('\u00e9')"), "not ASCII in the code"),
    (code("f(x)", stream("\u00e9")), "not ASCII in the output"),
    (code("!pip install x"), "shell commands"),
    (code("%time f()"), "shell commands"),
    (code("x = 1\n" * 31), "31 lines"),
    (code("import torch\n" * 41), "41 lines of code, at most 40"),
    (code("import torch\n" * 30 + "x = 1"), "31 lines of code, at most 30"),
    (code("x = " + "1" * 93), "a line of 97 columns, at most 96"),
    (code("x = " + "1" * 93, jupyter={"source_hidden": True}), "a line of 97 columns"),
    (code("f()", stream("so it goes, " * 8)), "a printed line of 96 characters, at most 90"),
    (code("plt.plot([1])"), "ends in the plot call"),
    (code("ax.plot([1]);"), "semicolon"),
    (code("out = widgets.Output()"), "Output is not for lessons"),
    (code("interact(f, x=3)"), "interact is not for lessons"),
    (code("open('/home/someone/x')"), "a path of one machine: '/home/someone'"),
    (code("f()", stream("saved in /tmp/xyz/model")), "a path of one machine in the output"),
    (code("f()", stream("<object at 0x7f12345678>")), "an object's address"),
    (code("f()", stream("careful", "stderr")), "stderr"),
    (code("f()", stream("x.py:3: UserWarning: old")), "a warning"),
    (code("f()", data("image/svg+xml", "<svg/>")), "SVG"),
    (code("f()", data("image/png", "AAAA")), "without alt text"),
    (code("f()", data("text/html", '<img src="data:image/png;base64,AAAA">')), "without alt text"),
    (code("f()", data("text/html", '<img alt="" src="a.png">')), "without alt text"),
    (code("f()", data("text/html", f'<img alt="a" src="x;base64,{"A" * 1_500_001}">')),
     "outputs take 1.5 MB"),
    (code("f()", nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])),
     "error output: ValueError"),
    (code("import torch\nimport minids"), "import minids before torch"),
    (code("def f("), "does not parse"),
    (nbformat.v4.new_markdown_cell("![](x.png)"), "no alt text"),
    (nbformat.v4.new_markdown_cell("### Exercise 1"), "three or more"),
])
def test_the_lint_finds(cell, finding):
    assert any(finding in text for text in findings_of(cell))


@pytest.mark.parametrize("cell", [
    code("print(f'{1 / 3:.3f}')", stream("0.333\n")),
    code("import minids\n" * 38 + "style.use()\nversions()"),
    code("x = 1\n" * 31, jupyter={"source_hidden": True}),
    code("x = 1\n" * 30),
    code("f()", stream("mathematics   0.123   " * 6)),
    # bytes of a picture may look like an address
    code("f()", data("text/html", '<img alt="a" src="data:image/png;base64,A0xabcdef12">')),
])
def test_the_lint_accepts(cell):
    assert findings_of(cell) == []


def test_the_answer_to_a_prediction_is_hidden():
    question = nbformat.v4.new_markdown_cell("**Predict before you run:** how many?")
    answer = code("f()", stream("three\n"))
    helper = code("g()", stream("a table\n"))
    for cell in (helper, answer):
        assert any("outputs_hidden" in text for text in findings_of(question, helper, answer))
        cell.metadata["jupyter"] = {"outputs_hidden": True}
        assert findings_of(question, code("h()"), helper, answer) == []
        del cell.metadata["jupyter"]
    far = [code("g()", stream("x\n")) for _ in range(3)]
    answer.metadata["jupyter"] = {"outputs_hidden": True}
    assert findings_of(question, *far, answer)


def findings_of(*cells):
    """The findings in a notebook with these cells, which is in order otherwise."""
    count = 0
    for cell in cells:
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
    head = nbformat.v4.new_markdown_cell("# T\n\nAfter this you can x.\n\n## Key points\n")
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return lint.check_notebook(nbformat.v4.new_notebook(cells=[head, *cells], metadata=spec))


@each_lesson
def test_the_readme_links_each_lesson(source):
    readme = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    assert f"[{source.stem}](notebooks/{source.stem}.ipynb)" in readme


def test_the_environments_have_the_same_pins():
    """Only requirements.txt has pins, and the package's bounds admit them."""
    lines = (paths.ROOT / "requirements.txt").read_text().split()
    pins = dict(line.split("==") for line in lines if "==" in line)
    environment = (paths.ROOT / "environment.yml").read_text()
    binder = (paths.ROOT / ".binder" / "requirements.txt").read_text()
    assert "- -r requirements.txt" in environment and "- -e ." in environment
    assert "\n-r ../requirements.txt\n-e .\n" in binder
    assert "==" not in environment + binder
    for text in (environment, binder):          # torch without CUDA: five gigabytes less
        assert "--extra-index-url https://download.pytorch.org/whl/cpu" in text
    settings = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    texts = sum(project["optional-dependencies"].values(),
                project["dependencies"] + settings["build-system"]["requires"])
    bounds = [Requirement(text) for text in texts if not text.startswith("minids[")]
    assert {bound.name for bound in bounds} == set(pins)
    assert [str(bound) for bound in bounds if not bound.specifier.contains(pins[bound.name])] == []
