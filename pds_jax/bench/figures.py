"""The pictures of the project, in one style: comparison grids, curves against NFE, spectra, filters, strips."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pds_jax.io.files import atomic_write
from pds_jax.io.images import enlarge, grid, save_gif, to_uint8, visible_scale

_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


_TICKS_APART = 0.25  # inches: nearer labels would lie on each other


def _pyplot() -> Any:
    # Imported here: the sampling path must not pay for matplotlib.
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    plt.rcParams.update(_STYLE)
    return plt


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a matplotlib figure as PNG, atomically, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    _pyplot().close(figure)
    atomic_write(path, lambda file: file.write(buffer.getvalue()))


def _show(axis: Any, picture: np.ndarray) -> None:
    pixels = to_uint8(picture)
    axis.imshow(
        pixels[..., 0] if pixels.shape[-1] == 1 else pixels,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def comparison(cells: Mapping[str, Mapping[str, np.ndarray]], path: str | os.PathLike[str], title: str = "") -> None:
    """Rows of image grids: one row a sampler, one column a number of network evaluations.

    Args:
      cells: row label -> column label -> images (n, H, W, C), uint8 or float in [0, 1]; a cell that is missing says so.
      path: the PNG to write.
      title: above everything.
    """
    plt = _pyplot()
    longest_first = sorted(cells.values(), key=len, reverse=True)
    columns = list(dict.fromkeys(name for row in longest_first for name in row))
    shown = grid(next(iter(next(iter(cells.values())).values())), pad=1)
    height = 3.2 * shown.shape[0] / shown.shape[1] + 0.1
    size = 3.2 * len(columns) + 0.8, height * len(cells) + 0.4 + 0.4 * bool(title)
    figure, axes = plt.subplots(len(cells), len(columns), figsize=size, squeeze=False)
    for row, (label, images_by_column) in enumerate(cells.items()):
        for column, name in enumerate(columns):
            axis = axes[row][column]
            if name in images_by_column:
                _show(axis, grid(images_by_column[name], pad=1))
            else:
                axis.set(xticks=[], yticks=[], frame_on=False)
                axis.text(0.5, 0.5, "not sampled", ha="center", va="center", color="0.5", transform=axis.transAxes)
            if row == 0:
                axis.set_title(name)
            if column == 0:
                axis.set_ylabel(label, fontsize=12)
    if title:
        figure.suptitle(title)
    figure.tight_layout()
    save(figure, path)


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    path: str | os.PathLike[str],
    *,
    xlabel: str,
    ylabel: str,
    floors: Sequence[float] = (),
    title: str = "",
    logx: bool = True,
    logy: bool = True,
) -> None:
    """Curves of a figure of merit, for instance Fréchet distance against NFE.

    Args:
      lines: label -> points (x, y); a line without points is left out.
      path: the PNG to write.
      xlabel: of the horizontal axis.
      ylabel: of the vertical axis.
      floors: values of as many real images, drawn as a gray band.
      title: above the axes.
      logx: logarithmic horizontal axis.
      logy: logarithmic vertical axis.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7.2, 4.8))
    shown = {label: points for label, points in lines.items() if points}
    for index, (label, points) in enumerate(shown.items()):
        xs, ys = zip(*sorted(points), strict=True)
        axis.plot(xs, ys, marker="osv^Dx*"[index % 7], label=label, linewidth=1.8, markersize=5)
    if len(floors):
        axis.axhspan(min(floors), max(floors), color="0.6", alpha=0.5, label="as many real images")
    axis.set_xscale("log" if logx else "linear")
    axis.set_yscale("log" if logy else "linear")
    _plain_ticks(axis, {x for points in lines.values() for x, _ in points}, logx, logy)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_title(title)
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    save(figure, path)


def bands(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float, float]]]],
    path: str | os.PathLike[str],
    *,
    xlabel: str,
    floors: Sequence[Sequence[float]] = (),
    title: str = "",
) -> None:
    """Curves with bands on logarithmic axes, a panel a figure of merit, one legend for all.

    Args:
      panels: figure of merit -> label -> points (x, mean, least, largest).
      path: the PNG to write.
      xlabel: of the horizontal axes.
      floors: for each panel values of as many real images, drawn as a gray band.
      title: above all.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels) + 2.4, 4.4), squeeze=False)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    for index, (axis, (name, lines)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        for label, points in lines.items():
            xs, middle, low, high = zip(*sorted(points), strict=True)
            number = labels.index(label)
            line = axis.plot(
                xs, middle, marker="osv^Dx*"[number % 7], color=f"C{number % 10}", label=label, markersize=5
            )
            axis.fill_between(xs, low, high, color=line[0].get_color(), alpha=0.2, linewidth=0)
        if index < len(floors) and len(floors[index]):
            axis.axhspan(min(floors[index]), max(floors[index]), color="0.6", alpha=0.5, label="as many real images")
        axis.set(xscale="log", yscale="log", xlabel=xlabel, title=name)
        _plain_ticks(axis, {x for points in lines.values() for x, *_ in points})
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(title)
    figure.tight_layout()
    save(figure, path)


def _plain_ticks(axis: Any, places: set[float], logx: bool = True, logy: bool = True) -> None:
    """Ticks of logarithmic axes as plain numbers, those of the horizontal one at the points where they fit."""
    if logx:
        inches = axis.get_window_extent().width / axis.figure.dpi
        apart = (max(places) / min(places)) ** (_TICKS_APART / inches)
        ticks: list[float] = []
        for x in sorted(places, reverse=True):
            if not ticks or ticks[-1] / x > apart:
                ticks.append(x)
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks], rotation=45 if len(ticks) > 8 else 0)
        axis.set_xticks([], minor=True)
    if logy:
        axis.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axis.yaxis.set_minor_formatter(lambda y, _: _between_powers(y, axis.get_ylim()))


def _between_powers(y: float, limits: tuple[float, float]) -> str:
    """Label of a tick between two powers of ten: the fewer of these are to be seen, the more."""
    decades = np.log10(limits[1] / limits[0])
    leading = f"{y:.0e}"[0]
    return f"{y:g}" if leading in ("" if decades > 2 else "25" if decades > 1 else "234568") and leading else ""


def spectra(powers: Mapping[str, np.ndarray], path: str | os.PathLike[str], title: str = "") -> None:
    """Radially averaged power spectra on one pair of logarithmic axes.

    Args:
      powers: label -> (H, W // 2 + 1, C) power per frequency.
      path: the PNG to write.
      title: above the axes.
    """
    lines = {}
    for label, power in powers.items():
        radius, mean = radial_mean(power)
        lines[label] = list(zip(radius[1:], mean[1:], strict=True))
    curves(lines, path, xlabel="frequency |k| (cycles per image)", ylabel="power", title=title, logx=True)


def bars(rows: Sequence[tuple[str, float, float]], path: str | os.PathLike[str], title: str = "") -> None:
    """Figures as bars, each with a mark at its target.

    Args:
      rows: (name, figure, target).
      path: the PNG to write.
      title: above the plot.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7, 0.4 * len(rows) + 1))
    places = np.arange(len(rows))[::-1]
    axis.barh(places, [value for _, value, _ in rows], height=0.6)
    axis.plot([goal for _, _, goal in rows], places, "k|", markersize=16, label="target")
    axis.set_yticks(places, [name for name, _, _ in rows])
    axis.legend(loc="lower right")
    axis.set_title(title)
    save(figure, path)


def radial_mean(power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average a half-plane spectrum over rings of equal rounded |k| and over channels.

    Args:
      power: (H, W // 2 + 1, C).

    Returns:
      Radii (n,) and mean power (n,).
    """
    power = np.asarray(power, np.float64)
    rows = np.fft.fftfreq(power.shape[0], 1.0 / power.shape[0])
    radius = np.rint(np.hypot(rows[:, None], np.arange(power.shape[1])[None, :])).astype(int)
    count = np.bincount(radius.ravel())
    total = np.bincount(radius.ravel(), weights=power.mean(axis=-1).ravel())
    return np.flatnonzero(count), total[count > 0] / count[count > 0]


def filters(freq: np.ndarray | None, space: np.ndarray | None, path: str | os.PathLike[str], title: str = "") -> None:
    """The filters of M as maps in one scale of colours: R over frequencies (zero in the centre) and A over pixels.

    Args:
      freq: (H, W, C) filter R on the full plane, or None.
      space: (H, W, C) filter A, or None.
      path: the PNG to write.
      title: above everything.
    """
    plt = _pyplot()
    maps = {} if freq is None else {"R (frequency)": np.fft.fftshift(np.asarray(freq), axes=(0, 1)).mean(axis=-1)}
    maps |= {} if space is None else {"A (pixel)": np.asarray(space).mean(axis=-1)}
    figure, axes = plt.subplots(
        1, max(1, len(maps)), figsize=(4.2 * max(1, len(maps)) + 0.6, 4), squeeze=False, layout="constrained"
    )
    scale = {"vmin": min(map(np.min, maps.values()), default=0), "vmax": max(map(np.max, maps.values()), default=1)}
    for axis, (name, value) in zip(axes[0], maps.items(), strict=False):
        height, width = value.shape
        first = (-(width // 2), -(height // 2)) if name.startswith("R") else (0, 0)
        extent = (first[0] - 0.5, first[0] + width - 0.5, first[1] + height - 0.5, first[1] - 0.5)
        image = axis.imshow(value, cmap="viridis", extent=extent, **scale)
        axis.set_title(f"{name}: {np.min(value):.3g} to {np.max(value):.3g}")
        axis.grid(False)
    if maps:
        figure.colorbar(image, ax=axes[0], fraction=0.05)
    if title:
        figure.suptitle(title)
    save(figure, path)


def strip(trajectory: np.ndarray, path: str | os.PathLike[str], labels: Sequence[str], title: str = "") -> None:
    """A trajectory: one row an image, one column a recorded step.

    Args:
      trajectory: (steps, n, H, W, C), uint8 or float in [0, 1].
      path: the PNG to write.
      labels: one a step.
      title: above everything.
    """
    plt = _pyplot()
    steps, count = trajectory.shape[:2]
    figure, axes = plt.subplots(
        count,
        steps,
        figsize=(0.9 * steps, 0.9 * count + 0.4),
        squeeze=False,
        gridspec_kw={"wspace": 0.06, "hspace": 0.06},
    )
    for row in range(count):
        for column in range(steps):
            _show(axes[row][column], trajectory[column, row])
            if row == 0:
                axes[row][column].set_title(labels[column], fontsize=8)
    if title:
        figure.suptitle(title)
    save(figure, path)


def _planes(panels: Mapping[str, Any], title: str, reach: float) -> tuple[Any, list[Any]]:
    """A figure with one square piece of the plane a label, two a row."""
    plt = _pyplot()
    rows = (len(panels) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(8, 4 * rows + 0.4), squeeze=False)
    for axis, label in zip(axes.flat, panels, strict=False):
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), title=label, aspect="equal")
    figure.suptitle(title)
    return figure, list(axes.flat)[: len(panels)]


def _within(positions: np.ndarray, reach: float) -> np.ndarray:
    return np.where(np.abs(positions).max(axis=-1, keepdims=True) <= 3 * reach, positions, np.nan)


def paths(panels: Mapping[str, np.ndarray], path: str | os.PathLike[str], title: str = "", reach: float = 4.0) -> None:
    """Paths of particles in the plane, two panels a row; where they end is marked.

    Args:
      panels: label -> positions (steps, n, 2); positions beyond ``reach`` are cut off.
      path: the PNG to write.
      title: above everything.
      reach: half the side of the plane shown.
    """
    figure, axes = _planes(panels, title, reach)
    for axis, positions in zip(axes, panels.values(), strict=True):
        seen = _within(positions, reach)
        axis.plot(seen[..., 0], seen[..., 1], color="C0", alpha=0.25, linewidth=0.7)
        axis.plot(seen[-1, :, 0], seen[-1, :, 1], "o", color="C3", markersize=3)
        if not (np.abs(positions[-1]).max(axis=-1) <= reach).any():
            axis.text(0.5, 0.5, "all have left the picture", transform=axis.transAxes, ha="center", color="0.4")
    figure.tight_layout(h_pad=1.5)
    save(figure, path)


def path_animation(
    panels: Mapping[str, np.ndarray], path: str | os.PathLike[str], title: str = "", reach: float = 4.0, tail: int = 6
) -> None:
    """The particles of :func:`paths` as they move, with the last steps of each as a tail.

    Args:
      panels: label -> positions (steps, n, 2), all of one length.
      path: the GIF to write.
      title: above everything, followed by the step.
      reach: half the side of the plane shown.
      tail: steps of the tail.
    """
    figure, axes = _planes(panels, title, reach)
    figure.set_dpi(64)
    figure.tight_layout()
    drawn = []
    for axis, positions in zip(axes, panels.values(), strict=True):
        seen = _within(positions, reach)
        lines = axis.plot(seen[:1, :, 0], seen[:1, :, 1], color="C0", alpha=0.4, linewidth=0.8)
        drawn.append((seen, lines, axis.plot([], [], "o", color="C3", markersize=3)[0]))
    frames = []
    for step in range(len(drawn[0][0])):
        for seen, lines, dots in drawn:
            dots.set_data(seen[step, :, 0], seen[step, :, 1])
            for index, line in enumerate(lines):
                line.set_data(seen[max(step - tail, 0) : step + 1, index].T)
        figure.suptitle(f"{title}{': ' if title else ''}step {step}")
        frames.append(_pixels(figure))
    _pyplot().close(figure)
    save_gif(path, frames)


def _pixels(figure: Any) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=figure.dpi)
    width, height = figure.canvas.get_width_height()
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(height, width, 4)[..., :3]


def image_animation(steps: Sequence[np.ndarray], path: str | os.PathLike[str], columns: int | None = None) -> None:
    """A run of the sampler as it goes: one frame a recorded step, all images in a grid.

    Args:
      steps: one array (n, H, W, C) a step, uint8 or float; what lies outside [0, 1] is clipped.
      path: the GIF to write.
      columns: images per row.
    """
    scale = visible_scale(steps[0].shape[1])
    save_gif(path, [grid(enlarge(np.clip(images, 0, 1), scale), columns) for images in steps])
