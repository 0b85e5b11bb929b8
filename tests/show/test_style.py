"""The style of figures, and the helpers that figures of several lessons share."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from minids.show import drawing, style


@pytest.fixture(autouse=True)
def settings_stay():
    with plt.rc_context():
        yield


def line() -> bytes:
    figure, ax = plt.subplots()
    ax.plot([1, 2], [3, 4])
    ax.text(1, 4, "text")
    return style.png(figure)


def test_figures_look_the_same_whatever_the_readers_settings():
    style.use()
    expected = line()
    plt.style.use("dark_background")
    plt.rcParams["font.size"] = 20
    assert line() != expected
    style.use()
    assert line() == expected


def test_the_running_mean_takes_fewer_values_at_the_start():
    np.testing.assert_allclose(style.running_mean([3, 5, 7, 1], 2), [3, 4, 6, 4])
    np.testing.assert_allclose(style.running_mean(range(9), 4)[3:],
                               np.convolve(range(9), np.ones(4) / 4, mode="valid"))


def test_numbers_in_short():
    assert [style.length(n) for n in (1024, 2**17, 2**20, 2**21)] == ["1K", "128K", "1M", "2M"]
    assert [style.signed(x, 2) for x in (1.234, -0.5, -0.001)] == ["+1.23", "-0.50", "0.00"]


def test_bars_stand_side_by_side_around_their_group():
    places = np.array([drawing.bar_places(2, k, 3) for k in range(3)])
    np.testing.assert_allclose(places.mean(0), [0, 1], atol=1e-12)
    np.testing.assert_allclose(np.diff(places, axis=0), 0.8 / 3)
    figure, ax = plt.subplots()
    drawing.interval_bars(ax, places[0], [(0.5, 0.4, 0.7), (0.2, 0.1, 0.3)], 0.2, style.BLUE)
    assert [bar.get_height() for bar in ax.patches] == [0.5, 0.2]
    (whiskers,) = ax.collections[0:1]
    np.testing.assert_allclose([s[:, 1] for s in whiskers.get_segments()], [[0.4, 0.7], [0.1, 0.3]])
    plt.close(figure)


def test_shares_fill_the_bar():
    figure, ax = plt.subplots()
    drawing.stacked_shares(ax, {"a": {"x": 3, "y": 1}}, {"x": style.BLUE, "y": style.SKY}, least=30)
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 75), (75, 25)]
    assert [text.get_text() for text in ax.texts] == ["75 %"]
    plt.close(figure)
