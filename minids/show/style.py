"""The style of every figure, figures with a description, and the slider that notebooks use.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; heat maps use cividis.
"""

import base64
import io
import textwrap
from collections.abc import Callable

import ipywidgets
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.ticker import LogLocator, NullLocator

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = PALETTE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")

STYLE = {
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


def use() -> None:
    """Use the course's style from here on, whatever the reader's matplotlibrc says."""
    plt.style.use(["default", STYLE])


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


def show(figure, alt: str) -> None:
    """Show a figure with a description of what there is to see.

    The description is the picture's `alt` metadata, which exported pages use, and a caption below
    it, since JupyterLab gives pictures no alternative text. nbval compares it, so it must be ASCII
    and hold no measured numbers.
    """
    if not alt.strip() or not alt.isascii():
        raise ValueError(f"a figure needs a description in ASCII, found {alt!r}")
    picture = base64.b64encode(png(figure)).decode()
    display({"image/png": picture, "text/plain": f"[figure] {alt}"},
            metadata={"image/png": {"alt": alt}}, raw=True)
    display({"text/markdown": f"*Figure: {alt}*", "text/plain": f"Figure: {alt}"}, raw=True)


class SliderImage(ipywidgets.VBox):
    """Sliders above a picture that is drawn again when a slider moves; made by `slider_image`.

    `sliders[name].value = ...` moves a slider in code; `shown` holds the values of the picture.
    """

    def __init__(self, draw: Callable, ranges: dict, alt: str):
        self.draw, self.alt, self.shown, self._cache = draw, alt, {}, {}
        self.sliders = {name: ipywidgets.SelectionSlider(options=list(values),
                                                         value=list(values)[0],
                                                         description=name.replace("_", " "),
                                                         continuous_update=False,
                                                         style={"description_width": "initial"})
                        for name, values in ranges.items()}
        self.image = ipywidgets.Image(format="png", layout={"align_self": "flex-start",
                                                            "max_width": "100%"})
        for slider in self.sliders.values():
            slider.observe(lambda change: self._update(), names="value")
        self._update()
        super().__init__([*self.sliders.values(), self.image, ipywidgets.Label(f"Figure: {alt}")])

    def _update(self) -> None:
        key = tuple(slider.value for slider in self.sliders.values())
        values = dict(zip(self.sliders, key))
        if key not in self._cache:
            self._cache[key] = png(self.draw(**values))
        self.image.value, self.shown = self._cache[key], values

    def __repr__(self) -> str:
        return f"[sliders: {', '.join(self.sliders)}] {self.alt}"

    def _repr_mimebundle_(self, **kwargs):
        """The live widget, and its current picture for readers without a kernel."""
        bundle = super()._repr_mimebundle_(**kwargs)
        bundle |= {"text/plain": repr(self),
                   "image/png": base64.b64encode(self.image.value).decode()}
        return bundle, {"image/png": {"alt": self.alt}}


def slider_image(draw: Callable, alt: str, **ranges) -> SliderImage:
    """A widget with sliders above the figure that `draw` makes.

        box = slider_image(draw, "Which keys a query sees", window=[4, 8, 16])
        display(box)

    ranges: name = the values it can take, a slider for each. `draw(**values)` returns a new
    matplotlib figure. The kernel draws every picture when it is asked for, none ahead of time.
    """
    if not ranges or not all(len(list(values)) for values in ranges.values()):
        raise ValueError("slider_image needs at least one named list of values")
    return SliderImage(draw, ranges, alt)
