"""What does docs/operations.md say? How to watch a service, and for each alert: meaning, look at, do.

`python -m deployments.observe.runbooks > docs/operations.md`, or `make docs`.
"""

from __future__ import annotations

from collections.abc import Iterator

from deployments.observe.alerts import ALERTS, GROUPS
from deployments.observe.alerts.terms import HEAD_JOB, JOB, RELEASE
from deployments.observe.board import Board
from deployments.observe.boards import BOARDS
from deployments.observe.objectives import AVAILABILITY, FAULTS, FIRST_TOKEN_LIMIT_S, FIRST_TOKEN_SHARE, FORGIVEN
from deployments.observe.rule import Alert

_INTRODUCTION = f"""# Operations

Written by `make docs` from `deployments/observe`; a test fails when this page is stale.

## Watch a service on this machine

```bash
llama31 serve                # in one terminal
llama31 observe              # in another: prints the address of a page; or `make observe`
```

`llama31 observe` finds the running service, starts a Prometheus beside it with our scrape configuration and rules, and
serves a page with every panel of every board, the alerts and their runbooks. Everything listens on loopback and ends
with Ctrl-C; no file stays. It needs the program `prometheus` (`make setup-full`, or your system's package).

![a board on the page of llama31 observe](observe.png)

Ray's own dashboard (its address and token are what `llama31 serve` prints) shows the processes and their logs: under
*Serve* the deployments and replicas, under *Actors* the ranks, named by their place in the plan.

![Serve's tab with both deployments](ray-dashboard.png)

![the ranks of a TP2 x PP2 replica](ray-ranks.png)

`python -m tests.observe.screenshots docs` takes these pictures anew, of the stand-in under load.

## Watch a service on Kubernetes

The chart brings the same boards as ConfigMaps for Grafana's sidecar and the same rules as a PrometheusRule. The files
are in `k8s/chart/files`; without the chart, import the boards into Grafana and name the rules file in `rule_files`.
Each node's exporter serves our series, vLLM's and Ray's on one port (9400 unless set). Alerts rely on the jobs' names,
`{JOB}` and `{HEAD_JOB}` (Ray's head, port 8080), and on the label `{RELEASE}` of each target, NAMESPACE/RELEASE, which
keeps several releases apart (boards have a choice of it): the chart's PodMonitor sets all three. Without that label all
targets count as one service. [Llama31WeightsNotThere](#llama31weightsnotthere) needs
kube-state-metrics. Redis needs no alert of its own: seconds without it end the head
([Llama31HeadDown](#llama31headdown)).

## By hand

On this machine, `llama31 status` shows what runs, and `kill PID` with the number of a line `replica` ends that one.
On Kubernetes:

```sh
kubectl get pods -n NAMESPACE -l app.kubernetes.io/instance=RELEASE -o wide   # the head's pod, addresses
kubectl exec -n NAMESPACE HEAD_POD -c ray-head -- llama31 status --address 127.0.0.1:6379
kubectl delete pod -n NAMESPACE POD   # ends a replica; POD has the address of one of its ranks
```

Streams of a replica that is ended so go on elsewhere. Serve starts another one; KubeRay replaces all pods of
that replica. Ray's dashboard shows processes and logs, but ends none.

## Boards
"""

_OBJECTIVES = f"""
## Objectives

| objective, over 30 days | what counts |
|---|---|
| {AVAILABILITY:.1%} of requests do not fail through the service | these outcomes are failures: {", ".join(FAULTS)} |
| {FIRST_TOKEN_SHARE:.0%} of first tokens come within {FIRST_TOKEN_LIMIT_S:g} s | from arrival at the ingress |

Alerts look at how fast the part that may go wrong is used up, in a long and a short window each: *fast* means gone
within days (page), *slowly* means gone within the month (ticket). In a quiet hour one bad answer is a large share, so
{FORGIVEN} bad ones or fewer in the long window say nothing. Callers' own errors, cancelled requests and passed
deadlines count neither way. Both are guesses at what users want: the numbers are
in `deployments/observe/objectives.py`.

## Alerts

*page*: somebody gets up. *ticket*: somebody looks on the next working day. `promtool test rules` proves of each that it
fires and that it stays quiet (`pytest -m observe`).
"""


def operations_page() -> str:
    """The whole page in Markdown."""
    parts = [_INTRODUCTION, *(_board_line(board) for board in BOARDS), _OBJECTIVES, *_table()]
    for alert in ALERTS:
        parts.extend(_runbook(alert))
    return "\n".join(parts)


def _board_line(board: Board) -> str:
    return f"- **{board.title.partition(': ')[2].capitalize()}** (`{board.uid}`): {board.meaning}"


def _table() -> Iterator[str]:
    yield "| alert | severity | lasts |"
    yield "|---|---|---|"
    for group in GROUPS:
        for alert in group.alerts:
            yield f"| [{alert.name}](#{alert.name.lower()}) | {alert.severity} | {alert.lasts} |"


def _runbook(alert: Alert) -> Iterator[str]:
    yield f"\n### {alert.name}\n"
    yield f"**Meaning.** {alert.meaning}\n"
    yield "**Look at**\n"
    yield from (f"- {line}" for line in alert.look_at)
    yield "\n**Do**\n"
    yield from (f"- {line}" for line in alert.do)
    yield "\n```promql"
    yield alert.expr
    yield "```"


if __name__ == "__main__":
    print(operations_page())
