"""The back-test's own arithmetic: demand, the clairvoyant plan, the fluid, and what counts as late."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.autoscaler_backtest import ORDERS, back_test
from bench.demand import STEP_S, as_replicas, clairvoyant_s, read_rates
from bench.fluid_fleet import Order, run
from bench.scaling_rules import LastRate, StaticPeak
from llama31.errors import ConfigInvalid


def test_shipped_rates_are_two_weeks_of_three_models() -> None:
    rates = read_rates()
    assert sorted(rates) == ["m-large", "m-mid", "m-small"]
    assert {len(series) for series in rates.values()} == {14 * 144}
    assert as_replicas(rates["m-mid"], 8).max() == 8


@pytest.mark.parametrize(
    ("text", "said"), [("model,t\na,0\n", "needs the columns"), ("model,t,rate\na,0,x\n", "needs the columns")]
)
def test_rates_of_another_form_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rates.csv"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=said):
        read_rates(path)
    with pytest.raises(ConfigInvalid, match="No such file"):
        read_rates(tmp_path / "none.csv")


def test_a_missing_step_has_the_rate_before_it(tmp_path: Path) -> None:
    path = tmp_path / "rates.csv"
    path.write_text("model,t,rate\na,0,2\na,1800,4\n")
    assert read_rates(path)["a"].tolist() == [2, 2, 2, 4]


def test_the_clairvoyant_plan_pays_each_start_once() -> None:
    assert clairvoyant_s(np.array([1.0, 2.5, 0.2]), 100.0) == (1 + 3 + 1) * STEP_S + 2 * 100


def test_a_static_peak_is_never_late_and_a_jump_is_late_until_its_replicas_have_drained_it() -> None:
    load = np.array([2.0, 4.0, 4.0])
    static, follows = run([StaticPeak(4), LastRate([0.0])], load, lead_s=60.0, slack_s=1.6, room=8)
    assert (static.attainment, static.replica_hours, static.reversals_a_day) == (1.0, 4 * 3 * STEP_S / 3600, 0)
    # At the jump 3 replicas are ready; nothing ever drains what queues up until the fourth is.
    assert 1 - follows.attainment == pytest.approx(4.0 * 2 * STEP_S / load.sum() / STEP_S, abs=0.03)


def test_where_the_late_yield_only_what_was_too_much_is_late_and_all_of_it_is_served() -> None:
    load = np.array([2.0, 4.0, 2.0])
    (first,) = run([StaticPeak(3)], load, lead_s=60.0, slack_s=1.6, room=8)
    (yields,) = run([StaticPeak(3)], load, lead_s=60.0, slack_s=1.6, room=8, order="late yield")
    assert 1 - first.attainment == pytest.approx((4 + 2) / load.sum(), abs=0.01), "until the queue is gone"
    # A fourth of the work was too much; a tenth of what the replicas do went to late work meanwhile.
    assert 1 - yields.attainment == pytest.approx((4 - 3 * 0.9) / load.sum(), abs=0.01)
    assert yields.left_share == first.left_share == 0.0
    assert yields.late_wait_s > 300


def test_in_calm_the_orders_are_one() -> None:
    load = np.array([2.0, 3.0, 2.0])
    outcomes = [run([StaticPeak(3)], load, 60.0, 1.6, 8, order) for order in ORDERS]
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("order", ORDERS)
def test_ours_does_better_after_a_jump_than_the_last_rate(order: Order) -> None:
    case = back_test("jump", np.array([2.0, 2.0, 4.0, 4.0]), 4, 65.0, order)
    (last_rate,) = (outcome for outcome in case.outcomes if outcome.label == "last rate x 1.000")
    assert 1 - case.ours.attainment < (1 - last_rate.attainment) / 3
