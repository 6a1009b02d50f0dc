"""How long do the kernels of one rank take on this machine's GPU? Writes a file for the cost model.

`python -m bench.gpu.rank_step --models llama-3.1-8b --tps 1 --out kernels.json.gz`
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from datetime import date
from pathlib import Path
from typing import Any

from bench.gpu.rank_plan import REDUCED_BYTES, build_plan
from cluster.cost import CostModel
from cluster.hardware import GPUS, Gpu, get_gpu
from cluster.kernels import load_kernels, write_kernels
from cluster.policy import StepShape
from llama31.errors import Llama31Error
from llama31.parallel import ParallelPlan
from llama31.specs import get_spec

MODELS = ("llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b")
# Decodes and context of the steps that are shown.
SHOWN = ((1, 1024), (32, 1024), (128, 1024))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.rank_step", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="names with commas (%(default)s)")
    parser.add_argument("--tps", default="1,2,4,8", help="tensor-parallel sizes whose rank is measured (%(default)s)")
    parser.add_argument("--dtypes", default="bfloat16,fp8", help="of the matrices (%(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only proves that this runs")
    parser.add_argument("--gpus", type=int, default=0, help="all-reduce over so many GPUs (all of the machine)")
    parser.add_argument("--gpu", default="", help=f"what the GPU is, if its name does not tell: {', '.join(GPUS)}")
    parser.add_argument("--quick", action="store_true", help="few sizes: a minute")
    parser.add_argument("--out", type=Path, default=Path("kernels.json.gz"), help="the file to write (%(default)s)")
    return parser.parse_args(argv)


def named_gpu(reported: str) -> Gpu:
    """The row for a name like "NVIDIA H100 80GB HBM3". Raises: ConfigInvalid."""
    short = next((gpu.name for gpu in GPUS.values() if gpu.name.partition("-")[0] in reported.upper()), reported)
    return get_gpu(short)


def measure(args: argparse.Namespace) -> tuple[Gpu, str, dict[str, Any]]:
    """The GPU, the file's source line and its tables."""
    import torch

    from bench.gpu.rank_kernels import Device, measure_all_reduce, measure_rank

    names, tps = args.models.split(","), [int(tp) for tp in args.tps.split(",")]
    plan = build_plan(names, tps, quick=args.quick)
    on_gpu = args.device == "cuda"
    reported = torch.cuda.get_device_name() if on_gpu else "a CPU: proves the code, is no measurement of a GPU"
    gpu = get_gpu(args.gpu) if args.gpu or not on_gpu else named_gpu(reported)
    tables = measure_rank(
        Device(args.device), plan, tuple(args.dtypes.split(",")), lambda text: print(text, flush=True)
    )
    available = torch.cuda.device_count() if on_gpu else args.gpus
    groups = [gpus for gpus in (2, 4, 8) if gpus <= (min(args.gpus, available) if args.gpus else available)]
    sizes = REDUCED_BYTES[:8] if args.quick else REDUCED_BYTES
    if groups:
        tables["all_reduce"] = {
            str(gpus): measure_all_reduce(args.device, gpus, sizes, _free_port()) for gpus in groups
        }
    source = f"measured on {date.today().isoformat()} with torch {torch.__version__} on {reported}"
    return gpu, source, tables


def compare(args: argparse.Namespace, gpu: Gpu) -> dict[str, dict[str, float]]:
    """Modelled milliseconds of some steps by the new file and by the shipped tables."""
    figures = {}
    for name in args.models.split(","):
        for tp in args.tps.split(","):
            row = {}
            for label, path in (("measured", args.out), ("shipped", None)):
                cost = CostModel(
                    get_spec(name), ParallelPlan(int(tp)), gpu, kernels=load_kernels(gpu.name, "vllm", path)
                )
                for decodes, context in SHOWN:
                    shape = StepShape(decodes=decodes, decode_context_tokens=decodes * context)
                    row[f"{label} {decodes}x{context} ms"] = round(1e3 * cost.step_s(shape), 3)
            figures[f"{name} tp{tp}"] = row
    return figures


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main(argv: list[str] | None = None) -> int:
    """2 where there is no GPU or the arguments are wrong."""
    args = parse(argv)
    try:
        import torch
    except ImportError:
        print("error: torch is not installed: install the extra `gpu`", file=sys.stderr)
        return 2
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: torch finds no CUDA device here; --device cpu --quick only proves that this runs", file=sys.stderr
        )
        return 2
    if args.device == "cpu" and not args.gpu:
        print("error: with --device cpu say with --gpu whose file it is to look like", file=sys.stderr)
        return 2
    try:
        gpu, source, tables = measure(args)
        write_kernels(args.out, gpu.name, source, tables)
        figures = compare(args, gpu)
    except (Llama31Error, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out} written: {source}")
    print(json.dumps({"figures": figures, "targets": {}, "ok": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
