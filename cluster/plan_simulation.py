"""How does a fleet do at a rate? The event simulator's answer, with the router of production."""

from __future__ import annotations

from cluster.plan_workload import PlanWorkload
from cluster.planner import Fleet, Prediction, Question
from cluster.report import Report
from cluster.report import Slo as RequestSlo
from cluster.sim_fleet import EngineSettings, SimFleet, View
from cluster.sim_ingress import Policies
from cluster.simulator import simulate
from cluster.workload import Workload

# A larger fleet is judged by so many of its replicas at their share of the rate: routing among more is no worse.
MOST_REPLICAS = 4
FEWEST_REQUESTS, MOST_REQUESTS = 1000, 4000
# So many times over, the sequences that run at once come and go.
TURNS = 6


class SimulatedPrediction:
    """Implements `cluster.planner.Predict`. Equal questions get equal answers: arrivals come from one seed."""

    def __init__(self, workload: PlanWorkload, policies: Policies) -> None:
        self._workload = workload
        self._policies = policies

    def __call__(self, fleet: Fleet, question: Question) -> Prediction:
        """Runs from an idle fleet to the last token of one to four thousand requests."""
        replicas = min(fleet.replicas, MOST_REPLICAS)
        rate_per_s = fleet.rate_per_s * replicas / fleet.replicas
        steady = fleet.replica.at(fleet.rate_per_s / fleet.replicas)
        turn = replicas * (steady.running if steady else fleet.replica.running_at_most())
        count = round(min(MOST_REQUESTS, max(FEWEST_REQUESTS, TURNS * turn)))
        requests = self._requests(rate_per_s, count, fleet, replicas)
        report = simulate(requests, self._sim_fleet(fleet, replicas), self._policies)
        return self._read(report, fleet, question, steady.busy if steady else 1.0)

    def _requests(self, rate_per_s: float, count: int, fleet: Fleet, replicas: int) -> Workload:
        """Of a trace, every so-many-th request for a part of the fleet: it keeps the bursts."""
        workload = self._workload
        if not workload.trace or replicas == fleet.replicas:
            return Workload(workload.requests(rate_per_s, count), workload.block_tokens)
        keep = fleet.replicas / replicas
        requests = list(workload.requests(fleet.rate_per_s, round(count * keep)))
        places = [int(i * keep) for i in range(int(len(requests) / keep))]
        return Workload([requests[place] for place in places], workload.block_tokens)

    def _sim_fleet(self, fleet: Fleet, replicas: int) -> SimFleet:
        replica = fleet.replica
        return SimFleet(
            cost=replica.cost,
            replicas=replicas,
            engine=EngineSettings(replica.max_step_tokens, replica.max_running),
            view=View(),
            gpus_per_replica=fleet.layout.gpus,
        )

    def _read(self, report: Report, fleet: Fleet, question: Question, busy: float) -> Prediction:
        slo = question.slo
        good = report.attainment(RequestSlo(slo.ttft_s, slo.itl_s))
        mean_output = fleet.replica.lengths.output_tokens
        served = report.requests / max(1, report.requests + sum(report.refused.values()))
        return Prediction(
            ttft_p50_s=report.ttft_percentile_s(0.5),
            ttft_p99_s=report.ttft_percentile_s(0.99),
            ttft_slo_s=report.ttft_percentile_s(slo.percentile),
            itl_p50_s=report.itl_percentile_s(0.5),
            itl_p99_s=report.itl_percentile_s(0.99),
            itl_slo_s=report.itl_percentile_s(slo.percentile),
            goodput_per_s=good * fleet.rate_per_s,
            output_tokens_s=served * fleet.rate_per_s * mean_output,
            busy=busy,
        )
