"""Count and measure what is in five photographs: galaxies, blood vessels, cell nuclei, coins, letters.

The photographs are those inside the scikit-image package. Each goes through one small graph of tasks:

    photograph ──▶ background ──▶ denoise (a task a tile) ──▶ threshold ──▶ segment (a task a tile)
                                                                                     │
                         summary ◀── measure (in parts) ◀── join the tiles, part what touches

* The whole graph is submitted at once; a task starts when what it depends on is there.
* A photograph is `put` once. Every tile's task looks at the same shared memory, and copies nothing.
* Denoising takes a whole CPU. The light stages ask for half of one, so two of them share it.
* `skate.wait` drives the progress bar.

Afterwards the same functions run in one plain process, and the two results must be equal to the last bit.

    python examples/photographs.py --output out/photographs.png
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import skate
from scipy import ndimage
from skimage import color, data, feature, filters, measure, morphology, restoration, segmentation, transform
from tqdm import tqdm

# ---------------------------------------------------------------- the photographs


@dataclass(frozen=True)
class Subject:
    """A photograph, and how to find things in it."""

    name: str
    things: str  #: what we count
    load: Callable[[], np.ndarray]
    channel: Callable[[np.ndarray], np.ndarray]  #: the grey picture in which the things stand out, bright
    background_px: int  #: how far one must look to see past a thing
    smallest_px: int  #: what is smaller is dust
    apart_px: int  #: centres of things that touch are at least this far apart; 0: leave them joined
    sigmas: float | None  #: threshold above the background, in its noise; None: Otsu's


def grey(picture: np.ndarray) -> np.ndarray:
    return picture


def inverted(picture: np.ndarray) -> np.ndarray:
    return 255 - picture


def brightest(rgb: np.ndarray) -> np.ndarray:
    return rgb.max(axis=2)


def green_inverted(rgb: np.ndarray) -> np.ndarray:
    return 255 - rgb[..., 1]  # blood swallows green


def haematoxylin(rgb: np.ndarray) -> np.ndarray:
    return color.rgb2hed(rgb)[..., 0]  # the stain that colours nuclei


SUBJECTS = (
    Subject("Hubble deep field", "galaxies", data.hubble_deep_field, brightest, 61, 12, 6, 7.0),
    Subject("Retina", "vessels", data.retina, green_inverted, 41, 120, 0, 3.5),
    Subject("Stained tissue", "nuclei", data.immunohistochemistry, haematoxylin, 101, 30, 7, None),
    Subject("Greek coins", "coins", data.coins, grey, 101, 100, 0, None),
    Subject("Printed page", "letters", data.page, inverted, 41, 6, 0, None),
)


@dataclass(frozen=True)
class Photograph:
    subject: Subject
    original: np.ndarray
    grey: np.ndarray  #: float32, 0 to 1, things bright
    field: np.ndarray  #: bool: where there is a picture at all; the retina is a disc on black

    @classmethod
    def load(cls, subject: Subject, crop: int | None) -> "Photograph":
        original = subject.load()
        if crop:
            top, left = ((side - min(side, crop)) // 2 for side in original.shape[:2])
            original = original[top : top + crop, left : left + crop]
        grey = subject.channel(original).astype(np.float32)
        grey = (grey - grey.min()) / (grey.max() - grey.min())
        field = np.ones(grey.shape, bool)
        if subject.things == "vessels":
            lit = np.pad(original[..., 0] > 25, 1)
            field = morphology.isotropic_erosion(lit, 24)[1:-1, 1:-1] if not lit.all() else field
        return cls(subject, original, grey, field)


class Tile(NamedTuple):
    """A rectangle of a photograph, and the rim around it that a filter needs to see."""

    rows: slice
    columns: slice

    @property
    def core(self) -> tuple[slice, slice]:
        return self.rows, self.columns

    def with_rim(self, rim: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The tile with its rim, in the photograph; and the tile itself, inside of that."""
        outer = tuple(slice(max(0, side.start - rim), side.stop + rim) for side in self.core)
        inner = tuple(
            slice(side.start - out.start, side.stop - out.start)
            for side, out in zip(self.core, outer, strict=True)
        )
        return outer, inner

    @classmethod
    def cover(cls, shape: tuple[int, int], edge: int) -> list["Tile"]:
        rows, columns = (
            [slice(start, min(start + edge, side)) for start in range(0, side, edge)] for side in shape
        )
        return list(itertools.starmap(cls, itertools.product(rows, columns)))


# ---------------------------------------------------------------- the stages: plain functions


class Span(NamedTuple):
    """Which process did what, when: the other thing that every stage returns."""

    stage: str
    pid: int
    start: float
    end: float


def stage(function: Callable[..., Any]) -> Callable[..., tuple[Any, Span]]:
    """Let a function return (its result, its Span)."""

    @wraps(function)
    def timed(*args: Any) -> tuple[Any, Span]:
        start = time.time()
        result = function(*args)
        return result, Span(function.__name__, os.getpid(), start, time.time())

    return timed


@stage
def background(grey: np.ndarray, reach_px: int) -> tuple[np.ndarray, float]:
    """The uneven light behind the things, as large as the photograph, and the noise in it."""
    quarter = tuple(max(8, side // 4) for side in grey.shape)
    small = transform.resize(grey, quarter, anti_aliasing=True)
    low = ndimage.percentile_filter(small, 30, size=max(3, reach_px // 4))
    light = transform.resize(ndimage.gaussian_filter(low, reach_px / 16), grey.shape).astype(np.float32)
    return light, spread(grey - light)


@stage
def denoise(grey: np.ndarray, light_and_noise: tuple[np.ndarray, float], tile: Tile) -> np.ndarray:
    """One tile without its background, its noise averaged away over patches that look alike."""
    light, noise = light_and_noise
    outer, inner = tile.with_rim(rim=11)
    flat = grey[outer] - light[outer]
    clean = restoration.denoise_nl_means(flat, patch_size=5, patch_distance=8, h=0.8 * noise, sigma=noise)
    return clean[inner].astype(np.float32)


@stage
def threshold(sigmas: float | None, *clean_tiles: np.ndarray) -> float:
    """How bright a pixel must be to belong to a thing: only all tiles together can tell."""
    pixels = np.concatenate([tile.ravel() for tile in clean_tiles])
    if sigmas is None:
        return float(filters.threshold_otsu(pixels))
    return float(np.median(pixels) + sigmas * spread(pixels))


@stage
def segment(clean: np.ndarray, level: float, field: np.ndarray, tile: Tile) -> np.ndarray:
    """Which pixels of a tile belong to things."""
    return (clean > level) & field[tile.core]


@stage
def join(shape: tuple[int, int], tiles: list[Tile], subject: Subject, *masks: np.ndarray) -> np.ndarray:
    """Tiles back into one picture, in which every thing has a number; 0 is background."""
    mask = np.empty(shape, bool)
    for tile, piece in zip(tiles, masks, strict=True):
        mask[tile.core] = piece
    mask = morphology.remove_small_objects(mask, max_size=subject.smallest_px)
    labels = measure.label(mask).astype(np.int32)
    if not subject.apart_px:
        return labels
    # Things that touch: flood each from its centre, the point that is deepest inside.
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 1)
    centres = feature.peak_local_max(
        depth, min_distance=subject.apart_px, labels=labels, exclude_border=False
    )
    seeds = np.zeros(shape, np.int32)
    seeds[tuple(centres.T)] = np.arange(1, len(centres) + 1)
    return segmentation.watershed(-depth, seeds, mask=mask).astype(np.int32)


MEASURED = ("label", "area", "eccentricity", "mean_intensity")


@stage
def measure_part(labels: np.ndarray, grey: np.ndarray, part: int, parts: int) -> dict[str, np.ndarray]:
    """Size, shape and brightness of every `parts`-th thing."""
    ours = np.where(labels % parts == part, labels, 0)
    return measure.regionprops_table(ours, grey, properties=MEASURED)


@stage
def summarise(*tables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One table a photograph, by number."""
    order = np.argsort(np.concatenate([table["label"] for table in tables]))
    return {column: np.concatenate([table[column] for table in tables])[order] for column in MEASURED}


def spread(pixels: np.ndarray) -> float:
    """Standard deviation of the bulk, whatever the outliers do."""
    return float(1.4826 * np.median(np.abs(pixels - np.median(pixels))))


# ---------------------------------------------------------------- the graph, and two ways to run it


class InThisProcess:
    """Runs a stage now."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def share(self, array: np.ndarray) -> np.ndarray:
        return array

    def run(self, function: Callable[..., tuple[Any, Span]], *args: Any) -> Any:
        result, span = function(*args)
        self.spans.append(span)
        return result


class OnSkate:
    """Submits a stage as a task; arguments and results are refs."""

    LIGHT = frozenset({background, threshold, segment, summarise})

    def __init__(self) -> None:
        self.spans: list[skate.ObjectRef] = []
        self.tasks = {
            function: skate.remote(num_returns=2, num_cpus=0.5 if function in self.LIGHT else 1)(function)
            for function in (background, denoise, threshold, segment, join, measure_part, summarise)
        }

    def share(self, array: np.ndarray) -> skate.ObjectRef:
        return skate.put(array)

    def run(self, function: Callable[..., tuple[Any, Span]], *args: Any) -> skate.ObjectRef:
        result, span = self.tasks[function].remote(*args)
        self.spans.append(span)
        return result


def analyse(
    photograph: Photograph, runner: InThisProcess | OnSkate, edge: int, parts: int = 4
) -> tuple[Any, Any]:
    """The graph of one photograph: (labels, table), or refs to them."""
    subject, shape = photograph.subject, photograph.grey.shape
    tiles = Tile.cover(shape, edge)
    run = runner.run
    grey, field = runner.share(photograph.grey), runner.share(photograph.field)

    light = run(background, grey, subject.background_px)
    clean = [run(denoise, grey, light, tile) for tile in tiles]
    level = run(threshold, subject.sigmas, *clean)
    masks = [run(segment, piece, level, field, tile) for piece, tile in zip(clean, tiles, strict=True)]
    labels = run(join, shape, tiles, subject, *masks)
    table = run(summarise, *[run(measure_part, labels, grey, part, parts) for part in range(parts)])
    return labels, table


def show_progress(refs: list[skate.ObjectRef]) -> None:
    """A bar that moves as tasks end, in whatever order they do."""
    with tqdm(total=len(refs), desc="on skate", unit=" tasks") as bar:
        while refs:
            ready, refs = skate.wait(refs, num_returns=1)
            bar.update(len(ready))
            bar.set_postfix_str(skate.get(ready[0]).stage, refresh=False)


# ---------------------------------------------------------------- what comes out


def print_table(photographs: list[Photograph], tables: list[dict[str, np.ndarray]], edge: int) -> None:
    head = (
        f"{'photograph':<18} {'pixels':>11} {'tiles':>5} {'found':>14} "
        f"{'median px':>9} {'largest px':>10} {'cover':>6}  roundness"
    )
    print(f"\n{head}\n{'─' * len(head)}")
    for photograph, table in zip(photographs, tables, strict=True):
        subject, (height, width) = photograph.subject, photograph.grey.shape
        found, area = len(table["area"]), table["area"]
        roundness = 1 - float(np.median(table["eccentricity"])) if found else 0.0
        print(
            f"{subject.name:<18} {f'{height} × {width}':>11} {len(Tile.cover((height, width), edge)):>5} "
            f"{f'{found} {subject.things}':>14} {np.median(area) if found else 0:>9.0f} "
            f"{area.max(initial=0):>10.0f} {area.sum() / photograph.field.sum():>6.1%}  "
            f"{'●' * round(10 * roundness)}"
        )


INK, PAPER, FAINT = "#e8e6e3", "#14161a", "#8b919c"
STAGE_COLOURS = {
    "background": "#5b8ff9",
    "denoise": "#3ba99c",
    "threshold": "#f6bd16",
    "segment": "#a0d911",
    "join": "#e8684a",
    "measure_part": "#b37feb",
    "summarise": "#ff99c3",
}
SUBJECT_COLOURS = ("#ffd166", "#ef476f", "#4cc9f0", "#f78c6b", "#83d483")


def draw(
    path: Path,
    photographs: list[Photograph],
    labels: list[np.ndarray],
    tables: list[dict[str, np.ndarray]],
    spans: list[Span],
    title: str,
) -> None:
    """Photographs with what was found in them, the sizes of it all, and which worker did what when."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"text.color": INK, "axes.labelcolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT}
    with plt.rc_context({**style, "axes.edgecolor": "#3a3f48", "axes.facecolor": PAPER, "font.size": 10}):
        figure = plt.figure(figsize=(16, 13.2), facecolor=PAPER)
        margins = {"left": 0.055, "right": 0.975, "top": 0.915, "bottom": 0.05}
        grid = figure.add_gridspec(3, 3, height_ratios=(5.1, 4, 1.7), hspace=0.17, wspace=0.07, **margins)
        figure.suptitle(title, x=0.055, y=0.967, ha="left", fontsize=20, fontweight="bold")

        places = [grid[0, 0], grid[0, 1], grid[0, 2], grid[1, 0], grid[1, 1]]
        for place, photograph, things, colour in zip(
            places, photographs, labels, SUBJECT_COLOURS, strict=True
        ):
            axes = figure.add_subplot(place)
            axes.imshow(photograph.original, cmap="gray")
            axes.imshow(tint(things), interpolation="nearest")
            axes.set_title(photograph.subject.name, loc="left", fontweight="bold")
            axes.set_title(f"{things.max()} {photograph.subject.things}", loc="right", color=colour)
            axes.axis("off")
            axes.set_anchor("N")

        draw_sizes(figure.add_subplot(grid[1, 2]), photographs, tables)
        draw_timeline(figure.add_subplot(grid[2, :]), spans)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def tint(labels: np.ndarray) -> np.ndarray:
    """A see-through colour for each thing, and a firm line around it."""
    by_size = np.argsort(np.bincount(labels.ravel())[1:])[::-1] + 1
    hues = np.zeros(labels.max() + 1)
    hues[by_size] = (0.5 + 0.618 * np.arange(len(by_size))) % 1  # neighbours in size lie far apart in hue
    colours = color.hsv2rgb(np.stack([hues, np.full_like(hues, 0.75), np.ones_like(hues)], axis=-1))
    alpha = np.where(segmentation.find_boundaries(labels, mode="inner"), 0.9, 0.35)
    return np.dstack([colours[labels], np.where(labels > 0, alpha, 0.0)])


def draw_sizes(axes: Any, photographs: list[Photograph], tables: list[dict[str, np.ndarray]]) -> None:
    """One row of dots a photograph: a dot is a thing, as far right as it is large."""
    jitter = np.random.default_rng(7)
    for row, (photograph, table, colour) in enumerate(zip(photographs, tables, SUBJECT_COLOURS, strict=True)):
        area = table["area"]
        axes.scatter(
            area, -row + jitter.uniform(-0.28, 0.28, len(area)), s=9, color=colour, alpha=0.6, linewidths=0
        )
        if len(area):
            axes.plot([np.median(area)] * 2, [-row - 0.38, -row + 0.38], color=INK, linewidth=2)
        right_edge = axes.get_yaxis_transform()
        axes.text(0.99, -row + 0.3, photograph.subject.things, color=colour, ha="right", transform=right_edge)
    axes.set(xscale="log", yticks=[], ylim=(-len(tables) + 0.4, 0.65))
    axes.set_title("How large they are, in pixels", loc="left", fontweight="bold")
    axes.set_title("line: the median", loc="right", color=FAINT, fontsize=9)
    axes.spines[["top", "left", "right"]].set_visible(False)


def draw_timeline(axes: Any, spans: list[Span]) -> None:
    """A lane a worker, a bar a task."""
    begin, end = min(span.start for span in spans), max(span.end for span in spans)
    by_start = sorted(spans, key=lambda span: span.start)
    lanes = {pid: lane for lane, pid in enumerate(dict.fromkeys(span.pid for span in by_start))}
    for name, colour in STAGE_COLOURS.items():
        of_stage = [span for span in spans if span.stage == name]
        axes.barh(
            [lanes[span.pid] for span in of_stage],
            [max(span.end - span.start, 0.002) for span in of_stage],
            left=[span.start - begin for span in of_stage],
            height=0.72,
            color=colour,
            edgecolor=PAPER,
            linewidth=0.3,
            label=name.removesuffix("_part"),
        )
    axes.set_yticks(range(len(lanes)), [f"worker {lane + 1}" for lane in lanes.values()])
    axes.set_xlim(0, end - begin)
    axes.invert_yaxis()
    axes.set_xlabel("seconds", labelpad=1)
    axes.set_title(f"Who did what, when: {len(spans)} tasks", loc="left", fontweight="bold")
    axes.legend(ncols=len(STAGE_COLOURS), loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


# ---------------------------------------------------------------- the program


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("out/photographs.png"), help="where the picture goes"
    )
    parser.add_argument("--cpus", type=int, help="logical CPUs to use (default: all)")
    parser.add_argument(
        "--tile", type=int, default=160, metavar="PX", help="edge of a tile (default: %(default)s)"
    )
    parser.add_argument("--small", action="store_true", help="only the middle of each photograph")
    options = parser.parse_args()

    crop = 160 if options.small else None
    edge = 80 if options.small else options.tile
    photographs = [Photograph.load(subject, crop) for subject in SUBJECTS]

    skate.init(num_cpus=options.cpus)
    cpus = skate.cluster_resources()["CPU"]
    begin = time.perf_counter()
    on_skate = OnSkate()
    refs = [analyse(photograph, on_skate, edge) for photograph in photographs]
    show_progress(on_skate.spans)
    found = [skate.get(list(pair)) for pair in refs]
    skate_s = time.perf_counter() - begin

    print("the same in one process …", flush=True)
    begin = time.perf_counter()
    here = InThisProcess()
    expected = [analyse(photograph, here, edge) for photograph in photographs]
    here_s = time.perf_counter() - begin

    labels, tables = [pair[0] for pair in found], [pair[1] for pair in found]
    for (our_labels, our_table), (their_labels, their_table) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(our_labels, their_labels)
        for column in MEASURED:
            np.testing.assert_array_equal(our_table[column], their_table[column])

    print_table(photographs, tables, edge)
    things = sum(len(table["area"]) for table in tables)
    print(f"\n{things} things measured by {len(on_skate.spans)} tasks on {cpus:g} CPUs")
    print(f"on skate {skate_s:.2f} s · in one process {here_s:.2f} s · {here_s / skate_s:.2f} times as fast")
    print("both gave the same numbers, to the last bit")

    title = f"{things} things in five photographs · {skate_s:.1f} s on skate, {here_s:.1f} s in one process"
    draw(options.output, photographs, labels, tables, skate.get(on_skate.spans), title)
    print(f"picture: {options.output}")
    skate.shutdown()


if __name__ == "__main__":
    main()
