"""Which demand do the scaling rules meet? ServeGen's rates, in replicas of a fleet that peaks at a given size."""

from __future__ import annotations

import csv
import gzip
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llama31.errors import ConfigInvalid

STEP_S = 600
STEPS_A_DAY = 86_400 // STEP_S
RATES = Path(__file__).parent / "data" / "servegen_rate_10min.csv.gz"

Rates = npt.NDArray[np.float64]


def read_rates(path: Path = RATES) -> dict[str, Rates]:
    """Model -> requests per second, one value a step. A step that is missing has the rate of the step before it.

    Raises: ConfigInvalid for a file of another form.
    """
    steps: dict[str, dict[int, float]] = {}
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            for row in csv.DictReader(file):
                steps.setdefault(row["model"], {})[int(float(row["t"])) // STEP_S] = float(row["rate"])
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror or error}") from None
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigInvalid(f"{path} needs the columns model, t and rate with numbers: {error!r}") from None
    return {model: _filled(known) for model, known in steps.items()}


def as_replicas(rates: Rates, peak: int) -> Rates:
    """In units of one replica's capacity, so that the highest step needs exactly `peak` of them."""
    return rates / rates.max() * peak


def clairvoyant_s(load: Rates, lead_s: float) -> float:
    """Replica-seconds of the integer plan that knows every step: just enough in each, started one lead time before."""
    plan = np.maximum(1, np.ceil(load - 1e-9))
    return float(plan.sum() * STEP_S + np.maximum(0, np.diff(plan)).sum() * lead_s)


def _filled(known: dict[int, float]) -> Rates:
    first, last = min(known), max(known)
    rates, rate = [], math.nan
    for step in range(first, last + 1):
        rate = known.get(step, rate)
        rates.append(rate)
    return np.array(rates)
