"""Whether this process is one of many that were started together, as by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sparsedelta.errors import RankError
from sparsedelta.ranks import ALONE, Ranks

_VARIABLES: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def launched() -> Iterator[Ranks]:
    """The ranks that the environment tells of; torch is imported only if there are others.

    Raises:
        RankError: The others did not come, or torch is not installed.
    """
    if not all(name in os.environ for name in _VARIABLES) or _number("WORLD_SIZE") == 1:
        yield ALONE
        return
    where = f"{os.environ['WORLD_SIZE']} processes at {os.environ['MASTER_ADDR']}"
    alone = "to run one process alone: env -u WORLD_SIZE sparsedelta …"
    try:
        import torch.distributed as dist  # noqa: PLC0415 (one process works without torch)

        from sparsedelta.torch_ranks import SILENCE, TorchRanks  # noqa: PLC0415

        dist.init_process_group("gloo", timeout=SILENCE)
        ranks = TorchRanks()
    except ImportError:
        raise RankError(f"{where}: torch is not installed", hint=alone) from None
    except (RuntimeError, ValueError) as error:  # of torch: no connection, time is up, no number
        text = str(error).splitlines()[0]
        raise RankError(f"{where} did not come together: {text}", hint=alone) from None
    with ranks:
        yield ranks
    dist.destroy_process_group()


def threads_here(ranks: Ranks, threads: int | None) -> int | None:
    """Worker threads of this process: those asked for, or its share of its machine's cores."""
    if threads is not None or ranks.size == 1:
        return threads
    from sparsedelta.parallel import usable_cores  # noqa: PLC0415 (info does not pay for threads)

    return max(1, usable_cores() // _number("LOCAL_WORLD_SIZE"))


def _number(name: str) -> int:
    try:
        return max(1, int(os.environ.get(name, "1")))
    except ValueError:
        return 1
