"""The processes of a sweep as an array of Slurm jobs, through submitit (the extra ``slurm``)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.extras import require_package
from cs_aligner_cli.recipe.sweep import Slurm

# "local": jobs of submitit on this machine, as a trial of what Slurm would be handed.
Cluster: TypeAlias = Literal["slurm", "local"]
_FOLDER = "jobs"


class Requeued:
    """A call that is put back into the queue when its job is preempted or its time is up, as submitit wants it."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def __call__(self) -> None:
        """Do it."""
        self.call()

    def checkpoint(self) -> Any:
        """What goes back into the queue: the same again, all state being in the sweep's folder."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def launch(call: Callable[[], None], jobs: int, spec: Slurm, folder: Path, name: str, cluster: Cluster) -> list[Any]:
    """Submit an array of ``jobs`` jobs that each make the same call; return submitit's jobs at once.

    Their scripts and logs go to FOLDER/jobs. Raises InputError where submitit or sbatch is absent, or Slurm refuses.
    """
    submitit = require_submitit(cluster)
    executor = submitit.AutoExecutor(folder / _FOLDER, cluster=cluster, slurm_max_num_timeout=spec.requeues)
    executor.update_parameters(
        name=name,
        timeout_min=spec.minutes,
        cpus_per_task=spec.cpus,
        gpus_per_node=spec.gpus,
        mem_gb=spec.memory_gb,
        slurm_array_parallelism=jobs,
        **{f"slurm_{key}": value for key in ("partition", "account") if (value := getattr(spec, key)) is not None},
        slurm_additional_parameters={"requeue": True, **spec.options},
    )
    try:
        with executor.batch():
            submitted = [executor.submit(Requeued(call)) for _ in range(jobs)]
    except submitit.core.utils.FailedJobError as error:
        raise InputError(f"--launch {cluster}: the jobs were refused: {error}", "See sweep.slurm.") from None
    return submitted


def require_submitit(cluster: Cluster) -> Any:
    """The package; raise InputError where it, or Slurm, is absent."""
    require_package("submitit", f"--launch {cluster}")
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise InputError(
            "--launch slurm: there is no sbatch on this machine",
            "Call it where jobs are submitted; --jobs N runs N processes here.",
        )
    import submitit

    return submitit
