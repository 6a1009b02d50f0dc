"""When can clients, or Prometheus, not reach the service, or soon not?"""

from __future__ import annotations

from deployments.observe.alerts.terms import HEAD_JOB, JOB, RELEASE, WANTED, grown
from deployments.observe.rule import Alert, Group

DOORS = Group(
    "llama31-doors",
    alerts=(
        Alert(
            "Llama31TargetDown",
            "page",
            "2m",
            f'up{{job="{JOB}"}} == 0 and max_over_time(up{{job="{JOB}"}}[1d]) == 1',
            "{{ $labels.instance }} does not answer Prometheus",
            "A node's exporter answered within the last day and no longer does: its ingress and replica processes are "
            "gone, or the network (a NetworkPolicy?) keeps Prometheus away.",
            ("`kubectl get pods -o wide`, or `llama31 status` on that machine.", "The pod's last log and events."),
            ("Serve and KubeRay restart what died. If the pod runs, ask its metrics port by hand: `curl`.",),
        ),
        Alert(
            "Llama31IngressDown",
            "page",
            "1m",
            f"(max by (release, model) (llama31_replica_ready) unless on (release, model) {WANTED})\n"
            "or on (release) (group by (release) (last_over_time(llama31_ingress_draining[1h])) "
            "unless on (release) llama31_ingress_draining)\n"
            "or on () absent(llama31_ingress_draining)",
            "{{ $labels.release }} {{ $labels.model }}: no ingress process answers",
            "There is no front door: clients cannot connect. With a model: it has replicas, but no ingress. Without: "
            "no ingress of this release is left, or of any; a release that was uninstalled says so for an hour.",
            (
                "`kubectl get pods -n NAMESPACE -l app.kubernetes.io/component=ingress`; Ray dashboard, *Serve*: the "
                "deployment `ingress`.",
                "Llama31TargetDown beside it: then Prometheus may be blind and the service fine; try a request.",
            ),
            ("Read the ingress log; most often a file it needs (tenants, certificate) is missing after a change.",),
        ),
        Alert(
            "Llama31HeadDown",
            "page",
            "2m",
            f'group by ({RELEASE}) (up{{job="{JOB}", {RELEASE}!=""}} == 1)\n'
            f'unless on ({RELEASE}) up{{job="{HEAD_JOB}"}} == 1',
            f"{{{{ $labels.{RELEASE} }}}}: Ray's head does not answer",
            "The pods of this release run, but their head does not. Streams go on, but nothing is replaced, scaled or "
            "rolled out; and ten minutes without a head end every ingress and every replica. The head also ends when "
            "Redis (`gcs.store`) does not answer it for some seconds.",
            (
                "`kubectl get pods -n NAMESPACE -l 'app.kubernetes.io/component in (head, redis)' -o wide`",
                "`kubectl logs HEAD_POD -c ray-head --previous`: `Failed to run redis cmds` means Redis.",
                "Network policies: may Prometheus reach 8080 of the head?",
            ),
            (
                "Redis first: its pod, its volume, its node. The head starts again by itself and finds its replicas.",
                "The head's pod waits for a node: make room now; you have ten minutes.",
                "Too late: all ends and starts anew, with a cold start. `helm test RELEASE -n NAMESPACE` afterwards.",
            ),
        ),
        Alert(
            "Llama31CertificateExpiresSoon",
            "ticket",
            "1h",
            "min by (release, file) (llama31_certificate_expiry_timestamp_seconds) - time() < 14 * 86400",
            "{{ $labels.file }} expires in {{ $value | humanizeDuration }}",
            "A certificate of the doors ends within two weeks and was not renewed. Only where the doors themselves "
            "speak TLS (`access.tlsSecret` of the chart): where a gateway ends it, as in the chart's presets, watch "
            "the gateway's certificate (cert-manager: `certmanager_certificate_expiration_timestamp_seconds`).",
            ("cert-manager's Certificate, or whoever renews it: why has it not?",),
            ("Put the renewed files in place; the ingress reads them again by itself, nothing restarts.",),
        ),
        Alert(
            "Llama31CertificateExpiresNow",
            "page",
            "5m",
            "min by (release, file) (llama31_certificate_expiry_timestamp_seconds) - time() < 2 * 86400",
            "{{ $labels.file }} expires in {{ $value | humanizeDuration }}",
            "A certificate of the doors ends within two days; then every client that checks it is locked out.",
            ("As for [Llama31CertificateExpiresSoon](#llama31certificateexpiressoon).",),
            ("Renew it by hand now and replace the files.",),
        ),
        Alert(
            "Llama31ReloadRefused",
            "ticket",
            "0m",
            grown('llama31_reloads_total{outcome="refused"}', "15m") + " > 0",
            "{{ $labels.instance }} refused a changed {{ $labels.what }} file",
            "The tenants file or the TLS files were replaced by something broken. The old content stays in force, "
            "until the process restarts: then it cannot start.",
            ("The ingress log: it says which line or file is wrong.",),
            ("Repair the file before anything restarts.",),
        ),
    ),
)
