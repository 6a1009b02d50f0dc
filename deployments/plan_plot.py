"""What does the planner's frontier look like: tokens a second for each user against those for each GPU?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from cluster.planner import Answer, Plan, Question
from llama31.errors import ConfigInvalid

POINTS = 24
# A frontier of more lines is not readable.
MOST_LINES = 8


def draw_frontier(question: Question, answer: Answer, file: Path) -> Iterator[Path]:
    """Draws the ranked plans' curves over all loads as PNG and SVG; yields the files. Raises: ConfigInvalid."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigInvalid("--plot needs matplotlib: install the extra 'plot'") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for place, plan in enumerate(answer.plans[:MOST_LINES], 1):
        users, gpus = zip(*_curve(plan), strict=True)
        (line,) = axes.plot(users, gpus, label=f"{place}: {plan.fleet}")
        at = plan.prediction
        axes.plot(1 / at.itl_p50_s, plan.tokens_s_per_gpu, "o", color=line.get_color())
    if not math.isinf(question.slo.itl_s):
        axes.axvline(1 / question.slo.itl_s, linestyle=":", color="gray", label="SLO between tokens")
    axes.set_xlabel("output tokens/s of one request")
    axes.set_ylabel("output tokens/s of one GPU")
    axes.set_title(f"{question.model} on {', '.join(map(str, question.hardware))} (modelled)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    stem = file.with_suffix("") if file.suffix in (".png", ".svg") else file
    for suffix in (".png", ".svg"):
        target = stem.with_name(stem.name + suffix)
        try:
            # Equal answers give equal files, and the text in them stays text.
            with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "llama31"}):
                figure.savefig(target, metadata={"Date": None} if suffix == ".svg" else None)
        except OSError as error:
            raise ConfigInvalid(f"{target}: {error.strerror}") from None
        yield target


def _curve(plan: Plan) -> Iterator[tuple[float, float]]:
    """From a little load to all that a replica sustains, by its steady state."""
    replica, output = plan.fleet.replica, plan.fleet.replica.lengths.output_tokens
    for point in range(1, POINTS):
        rate_per_s = plan.fleet.replica_capacity_per_s * point / POINTS
        steady = replica.at(rate_per_s)
        if steady is not None:
            yield 1 / steady.itl_s, rate_per_s * output / plan.layout.gpus
