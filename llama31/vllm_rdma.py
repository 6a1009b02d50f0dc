"""May this rank's process lock as much memory as NCCL needs for RDMA, where RDMA was asked for?"""

from __future__ import annotations

import logging
import os
import resource

_LOG = logging.getLogger("llama31.rank")


def warn_of_locked_memory() -> None:
    """Says in the rank's log what NCCL would later say in a riddle, or not at all while it falls back to TCP.

    NCCL_IB_DISABLE=0 is how RDMA is asked for.
    """
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if os.environ.get("NCCL_IB_DISABLE") == "0" and limit_bytes != resource.RLIM_INFINITY:
        _LOG.warning(
            "RDMA is asked for (NCCL_IB_DISABLE=0), but this process may lock only %d KiB of memory (ulimit -l): "
            "NCCL cannot register its buffers. Let the node's container runtime not limit it "
            "(containerd: LimitMEMLOCK=infinity in its systemd unit)",
            limit_bytes // 1024,
        )
