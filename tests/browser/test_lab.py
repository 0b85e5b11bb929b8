"""A learner's day in the browser: run a lesson, answer, save, close, and find all of it again."""

import json

import pytest

axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = pytest.mark.slow

ANSWER = '''def active_share(n_routed, n_active, n_shared):
    """My own version."""
    return (n_active + n_shared) / (n_routed + n_shared)


active_share = check("start.active_share", active_share)
'''
VALUE = "e => e.getAttribute('aria-valuetext') || e.value"
CONTROLS = "[role=slider], input[type=range], select"


def violations(page) -> set[str]:
    """What axe-core finds serious in the outputs that are on the page."""
    found = axe.Axe().run(page, context={"include": [[".jp-OutputArea-output"]]}).response
    return {f"{rule['id']}: {node['html'][:160]}" for rule in found["violations"]
            if rule["impact"] in ("serious", "critical") for node in rule["nodes"]}


def picture(notebook, cell: str) -> str:
    """The picture that a reader sees in the output of a cell."""
    image = notebook.select(cell).locator(".jp-OutputArea-output img:visible").first
    image.wait_for()
    return image.get_attribute("src")


def move(notebook, cell: str) -> None:
    """Move the first slider of a cell by keyboard; it must have a name for screen readers."""
    slider = notebook.select(cell).locator(CONTROLS).first
    slider.focus()
    assert slider.get_attribute("aria-label") or slider.evaluate("e => e.labels?.length"), \
        "the slider has no label"
    before = slider.evaluate(VALUE)
    for key in ("ArrowRight", "ArrowLeft"):
        notebook.page.keyboard.press(key)
        notebook.page.wait_for_timeout(3000)
        if slider.evaluate(VALUE) != before:
            return
    raise AssertionError(f"the slider stays at {before}")


@pytest.mark.parametrize("lesson, exercise", [("00", "start-active-share"), ("07", None)])
def test_a_lesson_is_run_answered_saved_and_found_again(lab, open_notebook, lesson, exercise):
    notebook = open_notebook(lab.start(lesson))
    page = notebook.page
    notebook.run_all()
    assert notebook.errors() == []
    widget, = notebook.ids("source.includes('slider_image(')")
    first = picture(notebook, widget)
    move(notebook, widget)
    moved = picture(notebook, widget)
    assert moved != first
    assert violations(page) == set()
    if exercise:
        notebook.write(exercise, ANSWER)
        assert "[passed]" in notebook.select(exercise).locator(".jp-OutputArea").inner_text()
    notebook.save_and_shut_down()
    page.close()
    lab.stop()

    saved, = lab.work.glob(f"{lesson}_*.ipynb")
    assert not exercise or ANSWER in [
        "".join(cell["source"]) for cell in json.loads(saved.read_text("utf-8"))["cells"]]
    notebook = open_notebook(lab.start(lesson))
    if exercise:
        assert notebook.source(exercise) == ANSWER
    assert picture(notebook, widget) == moved
    assert notebook.page.locator("text=Error displaying widget >> visible=true").count() == 0


@pytest.mark.parametrize("lesson", ["00", "07"])
def test_code_fits_and_outputs_are_accessible(lab, open_notebook, lesson):
    """As shipped, at 1366 pixels: no visible code scrolls sideways, folded outputs show nothing of
    the answer, and axe-core finds nothing serious."""
    notebook = open_notebook(lab.start(lesson))
    folded = notebook.page.locator(".jp-OutputPlaceholder")
    assert folded.count() > 3 and folded.locator(".jp-PlaceholderText:visible").count() == 0
    too_wide, found = [], set()
    for cell in notebook.ids("true"):
        code = notebook.select(cell).locator(".cm-scroller")
        if code.is_visible() and code.evaluate("e => e.scrollWidth > e.clientWidth + 1"):
            too_wide.append(cell)
        found |= violations(notebook.page)
    assert too_wide == [] and found == set()
