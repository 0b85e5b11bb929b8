"""The style of every figure, figures with a description, and the slider that notebooks use.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; heat maps use cividis.
"""

import base64
import html
import io
import textwrap
import threading
from collections.abc import Callable

import ipywidgets
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.ticker import LogLocator, NullLocator

from minids.show.panel import Panel

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = PALETTE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")

# Figures keep their own white paper in every theme.
PAPER, INK = "white", "black"
STYLE = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "savefig.transparent": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BLACK,
                                                YELLOW]),
    "image.cmap": "cividis",
    "figure.figsize": (7.0, 3.6),  # inches
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
}
DRAWING = threading.RLock()     # held while a panel's figure is drawn


def use() -> None:
    """Use the course's style from here on, whatever the reader's matplotlibrc says."""
    plt.style.use(["default", STYLE])


# ---- text ----

def escaped(text: str) -> str:
    """A text as HTML in ASCII: other characters become entities."""
    return html.escape(text).encode("ascii", "xmlcharrefreplace").decode()


def say(text: str, width: int = 90) -> None:
    """Print a text, its lines broken between words at `width` columns.

    Line breaks in the text stay. What continues an indented line is indented as much.
    """
    for line in text.split("\n"):
        indent = line[:len(line) - len(line.lstrip())]
        print(textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False,
                            break_on_hyphens=False))


# ---- numbers and axes ----

def running_mean(values, width: int = 10) -> np.ndarray:
    """The mean of each value and the `width` - 1 values before it; of fewer at the start."""
    total = np.cumsum(np.insert(np.asarray(values, dtype=float), 0, 0.0))
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - width, 0)
    return (total[end] - total[begin]) / (end - begin)


def signed(value: float, digits: int) -> str:
    """A number with its sign; what rounds to 0 has none."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def length(n: int) -> str:
    """A number of tokens in short: 1024 as "1K", 2**20 as "1M"."""
    return f"{n // 1024}K" if n < 2**20 else f"{n / 2**20:g}M"


def length_ticks(ax, lengths, every: int = 2) -> None:
    """Make the x axis logarithmic in base 2 and label every second (third, ...) of the lengths."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths[::every], [length(n) for n in lengths[::every]])


def plain_ticks(axis) -> None:
    """Label a logarithmic axis at 1, 2 and 5 of each power of ten, as plain numbers.

    axis: such as `ax.yaxis`.
    """
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_locator(NullLocator())


# ---- figures with a description ----

def png(figure) -> bytes:
    """The figure as PNG bytes; the figure is closed."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return file.getvalue()


def drawn(draw: Callable, **values) -> bytes:
    """The figure that `draw(**values)` makes, as PNG bytes; one at a time.

    JupyterLab may serve each slider in its own thread, and Matplotlib is not made for that. `ioff`
    keeps IPython from showing the figure a second time.
    """
    with DRAWING, plt.ioff():
        return png(draw(**values))


def picture(image: bytes, alt: str) -> str:
    """A PNG image as HTML, with its description: as alternative text, and as a caption.

    The caption is hidden from screen readers, which read the alternative text.
    """
    description = html.escape(alt)
    return ('<figure style="margin: 0">'
            f'<img alt="{description}" style="max-width: 100%; background: white" '
            f'src="data:image/png;base64,{base64.b64encode(image).decode()}">'
            f'<figcaption aria-hidden="true"><i>Figure: {description}</i></figcaption></figure>')


def _check_description(alt: str) -> None:
    if not alt.strip() or not alt.isascii():
        raise ValueError(f"a figure needs a description in ASCII, found {alt!r}")


def show(figure, alt: str) -> None:
    """Show a figure with a description of what there is to see.

    nbval compares the description, so it must be ASCII and hold no measured numbers.
    """
    _check_description(alt)
    display({"text/html": picture(png(figure), alt), "text/plain": f"[figure] {alt}"}, raw=True)


# ---- sliders ----

def _control(name: str, values, start):
    """A slider over numbers from left to right, or a dropdown list if any value is a text."""
    values = list(values)
    is_text = any(isinstance(value, str) for value in values)
    options = values if is_text else sorted(values)
    start = options[0] if start is None else start
    if start not in options:
        raise ValueError(f"{name} cannot start at {start!r}: expected one of {options}")
    label = name.replace("_", " ")
    look = {"description": label, "tooltip": label, "style": {"description_width": "initial"}}
    if is_text:
        return ipywidgets.Dropdown(options=options, value=start, layout={"width": "max-content"},
                                   **look)
    return ipywidgets.SelectionSlider(options=options, value=start, continuous_update=False, **look)


class SliderImage(Panel):
    """Sliders above a picture that is drawn again when a slider moves; made by `slider_image`.

    `sliders[name].value = ...` moves a slider in code; `shown` holds the values of the picture.
    """

    def __init__(self, draw: Callable, alt: str, ranges: dict, start: dict):
        self.draw, self.alt, self.shown, self._cache = draw, alt, {}, {}
        self.sliders = {name: _control(name, values, start.get(name))
                        for name, values in ranges.items()}
        super().__init__(self.sliders.values(), "Run this cell to choose other values.")
        for slider in self.sliders.values():
            slider.observe(lambda change: self._update(), names="value")
        self._update()

    def _update(self) -> None:
        self.shown = {name: slider.value for name, slider in self.sliders.items()}
        self.page.value = self._picture(self.shown)

    def _picture(self, values: dict) -> str:
        """The picture at these values as HTML; each is drawn once."""
        key = tuple(values.values())
        if key not in self._cache:
            self._cache[key] = picture(drawn(self.draw, **values), self.alt)
        return self._cache[key]

    def peek(self, **values) -> None:
        """Draw the picture at other values, and leave the sliders and the picture as they are."""
        for name, value in values.items():
            if value not in self.sliders[name].options:
                raise ValueError(f"{name} cannot be {value!r}: "
                                 f"expected one of {self.sliders[name].options}")
        self._picture(self.shown | values)

    def __repr__(self) -> str:
        return f"[sliders: {', '.join(self.sliders)}]"


def slider_image(draw: Callable, alt: str, start: dict | None = None, **ranges) -> SliderImage:
    """A widget with sliders above the figure that `draw` makes.

        box = slider_image(draw, "Which keys a query sees", window=[4, 8, 16],
                           start={"window": 8})
        display(box)

    ranges: name = the values it can take. Numbers become a slider, in ascending order; texts a
    dropdown list, in the given order. start: {name: value} where the first value is not the one to
    begin with. `draw(**values)` returns a new matplotlib figure. The kernel draws every picture
    when it is asked for, none ahead of time.
    """
    _check_description(alt)
    start = start or {}
    if not ranges or not all(len(list(values)) for values in ranges.values()):
        raise ValueError("slider_image needs at least one named list of values")
    if unknown := set(start) - set(ranges):
        raise ValueError(f"start names {sorted(unknown)[0]!r}: expected {', '.join(ranges)}")
    return SliderImage(draw, alt, ranges, start)
