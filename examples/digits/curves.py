"""Loss and accuracy by epoch, as a picture."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"with batch norm": "#3b6ea5", "without batch norm": "#c8641b"}


def draw(runs, title, file):
    """runs: by their names, keys of COLOURS, each a list of Epochs."""
    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2)
    for name, epochs in runs.items():
        numbers = range(1, len(epochs) + 1)
        look = {"color": COLOURS[name], "marker": "."}
        left.plot(numbers, [epoch.loss for epoch in epochs], label=name, **look)
        left.plot(numbers, [epoch.test_loss for epoch in epochs], label=f"{name}, on test images", ls=":", **look)
        right.plot(numbers, [100 * epoch.accuracy for epoch in epochs], **look)
    left.set(yscale="log", ylabel="loss, cross entropy")
    right.set(ylim=(0, 102), ylabel="right answers on test images, %")
    right.axhline(98, color="0.5", lw=0.8, ls="--", zorder=0)
    right.text(1, 97, "98 %", color="0.4", va="top", fontsize=8)
    for panel in left, right:
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(file)
