"""Figures, sliders and panels: what is displayed, and what a saved notebook keeps of it."""

import html
import threading
import time

import ipywidgets
import pytest

from minids.show import inference, panel, pretraining, style

VIEW = panel.VIEW


@pytest.fixture
def shown(monkeypatch):
    """The bundles that are displayed, in order. What `update` gets replaces its bundle."""
    bundles = []

    class Handle:
        def __init__(self):
            self.place = len(bundles) - 1

        def update(self, data, raw=None):
            bundles[self.place] = data

    def display(data, raw=None, display_id=None):
        bundles.append(data)
        return Handle() if display_id else None

    for module in (panel, style):
        monkeypatch.setattr(module, "display", display)
    return bundles


def empty_figure(width=1, **more):
    return style.plt.figure(figsize=(width, 1))


def sliders(**options):
    return style.slider_image(empty_figure, "an empty figure", **options)


def test_a_figure_has_its_description(shown):
    style.show(empty_figure(), 'a "rising" line')
    page = shown[0]["text/html"]
    assert 'alt="a &quot;rising&quot; line"' in page and "data:image/png;base64,iVBOR" in page
    assert '<figcaption aria-hidden="true">' in page and "image/png" not in shown[0]
    assert not style.plt.get_fignums()
    for wrong in (" ", "caf\u00e9"):
        with pytest.raises(ValueError, match="description"):
            style.show(empty_figure(), wrong)


def test_a_slider_draws_what_it_says():
    drawn = []

    def draw(width, height):
        drawn.append((width, height))
        return style.plt.figure(figsize=(width, height))
    box = style.slider_image(draw, "an empty figure", width=[1, 2, 3], height=[1, 2])
    first = box.page.value
    box.sliders["width"].value = 3
    assert box.shown == {"width": 3, "height": 1}
    assert box.page.value != first and 'alt="an empty figure"' in first
    box.sliders["width"].value = 1
    assert box.page.value == first and drawn == [(1, 1), (3, 1)]   # each picture is drawn once
    box.peek(height=2)
    assert drawn[2:] == [(1, 2)]
    assert box.page.value == first and box.shown == {"width": 1, "height": 1}
    with pytest.raises(ValueError, match="height cannot be 3"):
        box.peek(height=3)


def test_sliders_in_several_threads_draw_one_figure_at_a_time():
    """A figure drawn while another thread begins one comes out blank now and then."""
    busy, overlaps = [], []

    def draw(width):
        overlaps.extend(busy)
        busy.append(width)
        time.sleep(0.01)
        figure = empty_figure(width)
        busy.remove(width)
        return figure
    box = style.slider_image(draw, "an empty figure", width=range(1, 7))
    threads = [threading.Thread(target=box.peek, kwargs={"width": width}) for width in range(2, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not overlaps and not style.plt.get_fignums()


def test_sliders_rise_from_left_to_right_and_start_where_asked():
    box = sliders(width=[1.0, 0.25, 0.5], depth=range(5, 0, -1), start={"depth": 4})
    assert box.sliders["width"].options == (0.25, 0.5, 1.0)
    assert box.sliders["depth"].options == (1, 2, 3, 4, 5)
    assert box.shown == {"width": 0.25, "depth": 4}
    with pytest.raises(ValueError, match="cannot start at 7"):
        sliders(width=[1, 2], start={"width": 7})
    with pytest.raises(ValueError, match="start names 'with'"):
        sliders(width=[1, 2], start={"with": 1})
    for ranges in ({}, {"width": []}):
        with pytest.raises(ValueError, match="at least one"):
            sliders(**ranges)


def test_texts_become_a_list_in_their_own_order():
    box = sliders(kind_of=["second", "first"])
    assert isinstance(box.sliders["kind_of"], ipywidgets.Dropdown)
    assert box.sliders["kind_of"].options == ("second", "first")
    assert box.sliders["kind_of"].description == "kind of"


def test_a_saved_notebook_keeps_the_last_picture(shown, monkeypatch):
    box = sliders(width=[1, 2])
    box._ipython_display_()
    live, saved = shown
    assert live["text/plain"] == "[sliders: width]" and VIEW in live
    assert box.page.value in saved["text/html"] and VIEW not in saved
    box.sliders["width"].value = 2                      # by a cell: the output stays
    assert shown == [live, saved]
    monkeypatch.setattr(panel, "used_by_hand", lambda: True)
    box.sliders["width"].value = 1
    box.sliders["width"].value = 2
    assert box.page.value in shown[1]["text/html"] and shown[1] != saved
    assert shown[1]["text/html"].count("<img") == 1


def test_the_talk_keeps_its_last_reply(shown, monkeypatch):
    def reply(question, mode):
        return "hm", f"{question}!\u00e9", 3
    talk = inference.Talk(reply, ("now", "later"), "a")
    talk._ipython_display_()
    assert "<b>a!&#233;</b>" in shown[1]["text/html"]
    monkeypatch.setattr(panel, "used_by_hand", lambda: True)
    talk.question.value = "<b>"
    assert html.escape("<b>!") in shown[1]["text/html"] and shown[1]["text/html"].isascii()
    assert "#666" not in talk.page.value and "--jp-ui-font-color1" in talk.page.value


def test_the_live_loss_leaves_a_sentence(shown):
    pretraining.LiveLoss(20, {"trigram": 3.0})._ipython_display_()
    assert VIEW in shown[0] and "Run this cell" in shown[1]["text/html"]
    assert "<img" not in shown[1]["text/html"]


def test_a_cell_is_no_use_by_hand(monkeypatch):
    class Shell:
        class kernel:
            kind = "execute_request"

            @classmethod
            def get_parent(cls):
                return {"header": {"msg_type": cls.kind}}
    assert not panel.used_by_hand()                     # no kernel at all
    monkeypatch.setattr(panel, "get_ipython", lambda: Shell)
    assert not panel.used_by_hand()
    Shell.kernel.kind = "comm_msg"
    assert panel.used_by_hand()


def test_texts_wrap_between_words(capsys):
    style.say("one two three\n\n  - four five six\nseven   eight", width=10)
    assert capsys.readouterr().out == ("one two\nthree\n\n  - four\n  five six\nseven\neight\n")
    style.say("x" * 100 + " y-z")
    assert capsys.readouterr().out == "x" * 100 + "\ny-z\n"
    table = "name     12   3\n  other   4   5"
    style.say(table)
    assert capsys.readouterr().out == table + "\n"
