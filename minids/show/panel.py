"""Live panels (controls, and what they choose) that leave something to see in a saved notebook.

A panel is displayed as two outputs: the widget, which needs a kernel, and its stand-in, a piece of
HTML that the notebook saves. JupyterLab shows the stand-in only where the live panel is missing;
the style below sees to that. In other programs the stand-in is what shows the panel's page.
"""

import ipywidgets
from IPython import get_ipython
from IPython.display import DisplayHandle, display

INK = "var(--jp-ui-font-color1, inherit)"       # of text, in a light and in a dark theme
VIEW = "application/vnd.jupyter.widget-view+json"
# `.jp-OutputArea-child` is one output of a cell. A saved widget without its kernel is an error box.
STYLE = """
<style>
.jp-OutputArea-child:has(.minids-live) + .jp-OutputArea-child:has(.minids-saved) {display: none}
.jp-OutputArea-child:not(:has(.minids-live)):has(+ .jp-OutputArea-child .minids-saved)
  {display: none}
.minids-page:not(.jp-OutputArea *) {display: none}
.minids-live .widget-readout {min-width: 5em; overflow: visible}
</style>"""
# A slider's handle has no name of its own, and tells its place in the list instead of its value.
# Arrow keys belong to the control that has the focus; JupyterLab would move to another cell.
SCRIPT = """
<script>
(() => {
  const here = document.currentScript;
  const root = (here && here.closest(".jp-OutputArea")) || document.body;
  if (root.minidsNames) return;
  const set = (handle, name, text) => {
    if (text && handle.getAttribute(name) !== text) handle.setAttribute(name, text);
  };
  const read = () => {
    root.querySelectorAll(".minids-live select, .minids-live [role=slider]").forEach(control =>
      set(control, "data-lm-suppress-shortcuts", "true"));
    root.querySelectorAll(".minids-live .widget-hslider").forEach(slider => {
      const handle = slider.querySelector("[role=slider]");
      if (!handle) return;
      set(handle, "aria-label", slider.querySelector(".widget-label")?.textContent);
      set(handle, "aria-valuetext", slider.querySelector(".widget-readout")?.textContent);
    });
  };
  root.minidsNames = new MutationObserver(read);
  root.minidsNames.observe(root, {subtree: true, childList: true, attributes: true,
                                  attributeFilter: ["aria-valuetext"]});
  read();
})();
</script>"""


def stand_in(page: str, note: str) -> str:
    """The HTML that a saved notebook shows in place of a live panel: a page, and a note below."""
    return (f'<div class="minids-saved">{page}<p><small>{note}</small></p></div>'
            f"{STYLE}{SCRIPT}")


def show(widget: ipywidgets.DOMWidget, page: str, note: str) -> DisplayHandle:
    """Display a live widget and its stand-in; returns the stand-in's handle.

    The widget's `repr` is its text. nbval compares it, the note and the page; in the page it
    overlooks pictures and what is inside <div class="minids-reply">.
    """
    widget.add_class("minids-live")
    view = ipywidgets.DOMWidget._repr_mimebundle_(widget)[VIEW]
    display({VIEW: view, "text/plain": repr(widget)}, raw=True)
    return display({"text/html": stand_in(page, note), "text/plain": note}, raw=True,
                   display_id=True)


def used_by_hand() -> bool:
    """Whether the kernel is answering somebody's use of a widget, not running a cell."""
    kernel = getattr(get_ipython(), "kernel", None)
    parent = kernel.get_parent() if kernel else {}
    return parent.get("header", {}).get("msg_type") == "comm_msg"


class Panel(ipywidgets.VBox):
    """Controls above a page of HTML that they change.

    `page.value` is the page. `note` says how to get the controls back in a saved notebook.
    """

    def __init__(self, controls, note: str):
        self.note, self._handles = note, []
        self.page = ipywidgets.HTML()
        self.page.add_class("minids-page")
        self.page.observe(lambda change: self._save(), names="value")
        super().__init__([*controls, self.page])

    def _save(self) -> None:
        """Put the page into the notebook, after a person's choice.

        What a cell changes stays out, so that a lesson that is run shows the same each time.
        """
        if used_by_hand():
            for handle in self._handles:
                handle.update({"text/html": stand_in(self.page.value, self.note),
                               "text/plain": self.note}, raw=True)

    def _ipython_display_(self) -> None:
        self._handles.append(show(self, self.page.value, self.note))
