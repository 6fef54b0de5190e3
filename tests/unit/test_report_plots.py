"""Pictures of the report: what a reader must be able to trust without reading the code."""

import matplotlib.pyplot as plt

from spear_lib.report.plots import plot_curves


def test_a_name_has_one_colour_in_all_panels_of_a_figure():
    curve = ([1, 2], [0.5, 0.4])
    panels = [{"audio": curve, "speech": curve}, {"speech": curve}, {"other": curve, "audio": curve}]
    figure, axes = plt.subplots(1, 3)
    plot_curves(list(zip(axes, panels)))
    drawn = [(line.get_label(), line.get_color()) for axis in axes for line in axis.lines]
    plt.close(figure)
    assert [name for name, _ in drawn] == ["audio", "speech", "speech", "other", "audio"]
    assert len(set(drawn)) == len({colour for _, colour in drawn}) == 3
