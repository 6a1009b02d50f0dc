"""What can an operator type? `llama31 serve | plan | verify | chat | status | observe | ready | replay | ..`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from deployments import check, commands, version
from deployments.client_access import Tls
from deployments.config import ServiceConfig, load_config, node_dir, shipped_configs
from deployments.plan_command import add_plan
from deployments.verify_command import add_verify
from deployments.weights import prepare_standin_weights
from llama31.errors import ConfigInvalid, Llama31Error

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
OFF = "off"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Errors are one line on standard error, never a traceback."""
    options = build_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except Llama31Error as error:
        print(f"llama31: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_ERROR


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    parser = argparse.ArgumentParser(prog="llama31", description="Llama 3.1 served on Ray.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(subparsers.add_parser("serve", help="serve a model in the foreground until Ctrl-C"))
    _add_demo(subparsers.add_parser("demo", help="serve the stand-in, ask one question, stop"))
    _add_chat(subparsers.add_parser("chat", help="talk to a running service; interactive without a message"))
    _add_status(subparsers.add_parser("status", help="replicas, ranks with their nodes, load"))
    _add_observe(subparsers.add_parser("observe", help="boards and alerts of the running service, until Ctrl-C"))
    _add_ready(subparsers.add_parser("ready", help="can this node's ingress processes answer now"))
    _add_replay(subparsers.add_parser("replay", help="decide again on the pictures of an autoscaler's log"))
    _add_drain(subparsers.add_parser("drain", help="ask this node's ingress processes to leave, and wait for them"))
    _add_keys(subparsers.add_parser("keys", help="make API keys for tenants"))
    _add_weights(subparsers.add_parser("weights", help="prepare, fetch or check the weights"))
    add_plan(subparsers.add_parser("plan", help="which plan serves a model on given GPUs within an SLO"))
    add_verify(subparsers.add_parser("verify", help="does the running service keep its plan; 1 on drift"))
    _add_version(
        subparsers.add_parser("version", help="what is installed here, and which GPUs; 1 if a part is missing")
    )
    return parser


def _add_service_options(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(shipped_configs())
    parser.add_argument(
        "--config", default="standin", metavar="FILE", help=f"a file, or one of {names} (default: standin)"
    )
    parser.add_argument("--plan", help="how to split a replica: tp8, pp2, tp2pp2 (default: the configuration's)")
    parser.add_argument("--replicas", type=int, metavar="N", help="engine replicas")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1); others need --tenants and --tls-*")
    parser.add_argument("--port", type=int, help="gRPC port, 0 for a free one (default: 9000)")
    parser.add_argument(
        "--http-port", type=_port_or_off, metavar="PORT", help="OpenAI API and status page, or 'off' (default: 8000)"
    )
    parser.add_argument("--tenants", metavar="FILE", help="ask for API keys, of the tenants in this file")
    parser.add_argument("--tls-cert", metavar="FILE", help="speak TLS with this certificate chain (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="its key (PEM)")
    parser.add_argument("--tls-client-ca", metavar="FILE", help="clients need a certificate of this CA (PEM)")
    parser.add_argument("--serve-without-keys", action="store_true", default=None, help="let all in, on any --host")
    parser.add_argument("--serve-without-tls", action="store_true", default=None, help="plaintext, on any --host")
    parser.add_argument("--metrics-port", type=int, help="Prometheus port of each node (default: 9400)")
    parser.add_argument("--weights", choices=("checkpoint", "dummy"), help="dummy: random weights, no checkpoint")
    parser.add_argument("--engine", choices=("vllm", "scripted"), help="scripted: echoes the prompt, no model")
    parser.add_argument("--checkpoint", metavar="DIR", help="directory with the weights (default: the prepared ones)")


def _service_config(options: argparse.Namespace) -> ServiceConfig:
    chosen = {
        "plan": options.plan,
        "replicas": options.replicas,
        "ingress.host": options.host,
        "ingress.port": options.port,
        "ingress.auth.tenants_file": options.tenants,
        "ingress.tls.cert_file": options.tls_cert,
        "ingress.tls.key_file": options.tls_key,
        "ingress.tls.client_ca_file": options.tls_client_ca,
        "ingress.serve_without_keys": options.serve_without_keys,
        "ingress.serve_without_tls": options.serve_without_tls,
        "ingress.metrics_port": options.metrics_port,
        "engine.weights": options.weights,
        "engine.kind": options.engine,
        "engine.checkpoint": options.checkpoint,
    }
    overrides = {path: value for path, value in chosen.items() if value is not None}
    if options.http_port is not None:
        overrides["ingress.http_port"] = None if options.http_port == OFF else options.http_port
    return load_config(options.config, overrides)


def _port_or_off(text: str) -> int | str:
    return OFF if text == OFF else int(text)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_service_options(parser)
    parser.add_argument("--address", default="", help="serve on this Ray cluster instead of starting one")
    check_help = "print the plan and what the cluster lacks, start nothing; FILE may be a RayService's serveConfigV2"
    parser.add_argument("--check", action="store_true", help=check_help)
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    if options.check:
        declared = commands.declared_service(options.config)
        return _check(declared or _service_config(options), options.address)
    config = _service_config(options)
    faults = list(check.memory_faults(config)) if config.engine.kind == "vllm" else []
    if faults:
        raise ConfigInvalid("; ".join(faults))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _interrupt(stop))
    service = commands.make_service(config, options.address)
    try:
        print(commands.how_to_connect(service.start()), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            stop.wait()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        service.stop()
    print("stopped", flush=True)
    return 0


def _interrupt(stop: threading.Event) -> None:
    """Ends the wait for requests, or whatever start-up is doing."""
    if stop.is_set():
        return
    stop.set()
    raise KeyboardInterrupt


def _check(config: ServiceConfig, ray_address: str) -> int:
    for line in check.describe(config):
        print(line)
    missing = check.what_is_missing(config, commands.present_cluster(config, ray_address))
    faults = list(check.memory_faults(config))
    print(f"cluster    {missing or 'the present cluster can hold it'}")
    return EXIT_ERROR if missing or faults else 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", default="tp2", help="how to split the stand-in (default: tp2)")
    parser.add_argument("question", nargs="?", default="What is the capital of France?")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    began_s = time.monotonic()
    overrides = {
        "plan": options.plan,
        "ingress.port": 0,
        "ingress.http_port": None,
        "ingress.metrics_port": 0,
        "local_cluster.dashboard_port": 0,
    }
    config = load_config("standin", overrides)

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - began_s:5.1f} s] {line}", flush=True)

    service = commands.make_service(config, "", progress)
    try:
        address = service.start()
        for line in commands.rank_table(service.records()):
            print(line)
        print(f"\n> {options.question}")
        commands.ask_once(address.grpc, options.question, commands.ChatSettings(temperature=0.0, max_tokens=64))
    finally:
        service.stop()
    progress("stopped")
    return 0


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("message", nargs="?", help="one question; without it, a conversation")
    parser.add_argument("--address", help="HOST:PORT of the gRPC server (default: the running service)")
    parser.add_argument("--system", default="", help="a system message")
    parser.add_argument("--temperature", type=float, help="0 to 2 (default: the model's own)")
    parser.add_argument("--max-tokens", type=int, help="longest answer")
    parser.add_argument("--seed", type=int, help="repeats a sampled answer")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="holds the API key")
    parser.add_argument("--tls", action="store_true", help="speak TLS; the other TLS options imply it")
    parser.add_argument("--ca-file", default="", metavar="FILE", help="trust this CA (PEM; default: the public ones)")
    parser.add_argument("--cert-file", default="", metavar="FILE", help="the client's own certificate (PEM)")
    parser.add_argument("--key-file", default="", metavar="FILE", help="its key (PEM)")
    parser.set_defaults(run=_chat)


def _chat(options: argparse.Namespace) -> int:
    address, speaks_tls = options.address, options.tls
    if not address:
        running = commands.running_service()
        address, speaks_tls = running.grpc, running.tls
    tls = Tls(options.ca_file, options.cert_file, options.key_file)
    access = commands.Access(options.api_key_file, tls if speaks_tls or tls != Tls() else None)
    settings = commands.ChatSettings(options.system, options.temperature, options.max_tokens, options.seed)
    if options.message is not None:
        commands.ask_once(address, options.message, settings, access)
    else:
        commands.converse(address, settings, access)
    return 0


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, help="gRPC port of the service, if several run")
    parser.add_argument("--address", default="", help="a Ray cluster with a service, whoever deployed it")
    parser.set_defaults(run=_status)


def _status(options: argparse.Namespace) -> int:
    lines = commands.cluster_lines(options.address) if options.address else None
    for line in lines or commands.status_lines(commands.running_service(options.port)):
        print(line)
    return 0


def _add_observe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=9600, help="of the page, 0 for a free one (default: 9600)")
    parser.add_argument("--service-port", type=int, metavar="PORT", help="gRPC port of the service, if several run")
    parser.set_defaults(run=_observe)


def _observe(options: argparse.Namespace) -> int:
    from deployments.observe.run import observe

    observe(commands.running_service(options.service_port), options.port, lambda text: print(text, flush=True))
    return 0


def _add_ready(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "For a probe on the node, which needs neither key nor certificate: ends with 0 if every ingress process of a "
        "declared service there can answer for its model now."
    )
    parser.set_defaults(run=_ready)


def _ready(_: argparse.Namespace) -> int:
    from deployments.drain import ready_count

    ready, processes = ready_count(node_dir())
    print(f"{ready} of {processes} ingress processes are ready")
    return 0 if processes and ready == processes else 1


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.description = "Exit code 0: all decisions are the same; 1: some differ, or FILE cannot be read."
    parser.add_argument("file", type=Path, metavar="FILE", help="autoscaler.jsonl of the service's run directory")
    policy_help = "what other rules would have asked for on the same pictures: late_price=24, keep_s=300; repeatable"
    parser.add_argument("--policy", type=_rule, action="append", default=[], metavar="RULE=VALUE", help=policy_help)
    parser.set_defaults(run=_replay)


def _replay(options: argparse.Namespace) -> int:
    from deployments.replay import replay

    return 0 if replay(options.file, dict(options.policy), lambda line: print(line, flush=True)) else EXIT_ERROR


def _rule(text: str) -> tuple[str, float]:
    if not (found := re.fullmatch(r"([a-z_]+)=([0-9]+(?:\.[0-9]+)?)", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not RULE=NUMBER")
    return found[1], float(found[2])


def _add_drain(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "For a node that goes away: its ingress processes refuse new requests, tell clients to connect elsewhere and "
        "end with their streams. They stay drained until they are replaced."
    )
    wait_help = "cut off what still runs then (default: 60)"
    parser.add_argument("--wait", type=_seconds, default=60.0, metavar="SECONDS", help=wait_help)
    parser.set_defaults(run=_drain)


def _drain(options: argparse.Namespace) -> int:
    from deployments.drain import drain_node

    print(drain_node(node_dir(), options.wait))
    return 0


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return float(text)


def _add_keys(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    new = actions.add_parser("new", help="print a new key once, and the lines for the tenants file")
    new.add_argument("tenant", metavar="TENANT", help="a-z 0-9 . _ - and at most 64 characters")
    new.add_argument("--days", type=int, metavar="N", help="the key expires after N days (default: never)")
    new.set_defaults(run=_new_key)


def _new_key(options: argparse.Namespace) -> int:
    for line in commands.new_key(options.tenant, options.days):
        print(line)
    return 0


def _add_weights(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    prepare = actions.add_parser("prepare", help="convert the packaged stand-in weights into the cache, once")
    prepare.add_argument("--verify", action="store_true", help="compare every digest, too")
    prepare.set_defaults(run=_prepare)
    fetch = actions.add_parser(
        "fetch", help="bring a checkpoint into a directory, whole or not at all; goes on after a kill"
    )
    fetch.add_argument(
        "source", metavar="SOURCE", help="hub id OWNER/NAME, s3://BUCKET/PREFIX, gs://..., or a directory"
    )
    fetch.add_argument(
        "directory", metavar="DIR", type=Path, help="a new or empty directory, or that of an earlier run"
    )
    fetch.add_argument("--revision", default="", metavar="R", help="commit, tag or branch on the hub (default: main)")
    fetch.add_argument("--jobs", type=_jobs, default=8, metavar="N", help="files at the same time (default: 8)")
    fetch.add_argument("--digests", action="store_true", help="compare what is there already with its digests, too")
    fetch.add_argument("--token-file", type=Path, metavar="FILE", help="holds the hub's token (default: HF_TOKEN)")
    fetch.add_argument("--tokenizer-only", action="store_true", help="only what an ingress on another node needs")
    fetch.set_defaults(run=_fetch)
    examine = actions.add_parser("check", help="is a checkpoint directory whole and safe to load?")
    examine.add_argument("directory", type=Path)
    examine.add_argument("--digests", action="store_true", help="read every file and compare its digest, too")
    examine.set_defaults(run=_examine)


def _prepare(options: argparse.Namespace) -> int:
    prepare_standin_weights(print, verify=options.verify)
    return 0


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 64")
    return int(text)


def _fetch(options: argparse.Namespace) -> int:
    from deployments.weights_fetch import FetchRequest, fetch_tokenizer, fetch_weights

    fetch = fetch_tokenizer if options.tokenizer_only else fetch_weights
    fetch(
        FetchRequest(
            source=options.source,
            directory=options.directory,
            revision=options.revision,
            jobs=options.jobs,
            digests=options.digests,
            token_file=options.token_file,
        ),
        functools.partial(print, flush=True),
    )
    return 0


def _examine(options: argparse.Namespace) -> int:
    print(commands.check_weights(options.directory, options.digests))
    return 0


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_version)


def _version(options: argparse.Namespace) -> int:
    lines, faults = version.version_lines()
    for line in lines:
        print(line)
    for fault in faults:
        print(f"llama31: {fault}", file=sys.stderr)
    return EXIT_ERROR if faults else 0


if __name__ == "__main__":
    sys.exit(main())
