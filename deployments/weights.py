"""Which weights can be made on the spot, on whatever node asks for them?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deployments.config import ServiceConfig, cache_dir, checkpoint_dir
from llama31.checkpoint import prepare_dummy, prepare_standin

STANDIN = "smollm2-135m"

Progress = Callable[[str], None]


def prepare_weights(config: ServiceConfig, progress: Progress) -> None:
    """Makes the stand-in's weights, or the directory that random weights need; others must be there already.

    Raises: CheckpointMissing, CheckpointCorrupt, ConfigInvalid.
    """
    engine = config.engine
    if engine.checkpoint is not None:
        return
    if engine.weights == "dummy":
        prepare_dummy(checkpoint_dir(config), config.spec, progress)
    elif config.model == STANDIN:
        prepare_standin_weights(progress)


def prepare_standin_weights(progress: Progress, verify: bool = False) -> Path:
    """Converts the packaged weights once. Raises: CheckpointMissing, CheckpointCorrupt."""
    return prepare_standin(cache_dir() / STANDIN, progress, verify=verify)
