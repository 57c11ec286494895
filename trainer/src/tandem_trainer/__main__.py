# SPDX-License-Identifier: Apache-2.0
"""One trainer rank, as torchrun starts it: ``torchrun … -m tandem_trainer``."""

import os
from datetime import timedelta

from tandem_api import environment as env
from tandem_api import logs
from tandem_api.environment import Environment
from tandem_trainer.server import CommandRefused, Server, listen

_SPARE = timedelta(minutes=2)


def main() -> None:
    """Listen, take the device, join the other ranks, then do what the sidecar says until it says finish."""
    environment = Environment()
    job = environment.job()
    rank = int(os.environ["LOCAL_RANK"])
    logs.configure(job=job.name, rank=int(os.environ["RANK"]))
    run_dir = environment.path(env.RUN_DIR)
    # Before the imports below, which take longer than a sidecar likes to be refused.
    listener = listen(run_dir / f"trainer-{rank}.sock")

    from tandem_api.errors import TandemError
    from tandem_handoff import HandoffError
    from tandem_trainer.device import activate

    with activate(rank) as device:
        from tandem_trainer import parallel
        from tandem_trainer.checkpoint import CheckpointUnreadable
        from tandem_trainer.trainer import Places, Trainer

        sizes = job.spec.trainer.parallelism
        timeout = timedelta(seconds=job.spec.schedule.phase_deadlines.train) + _SPARE
        layout = parallel.initialise(device, sizes, job.spec.seed, timeout)
        places = Places(
            run_dir,
            environment.path(env.CHECKPOINT_DIR),
            environment.text(env.ORCHESTRATOR_URL),
            environment.secrets().token,
        )
        trainer = Trainer(job, places, device, layout)
        try:
            recoverable = (CommandRefused, CheckpointUnreadable, parallel.CollectiveFailed, HandoffError, TandemError)
            Server(listener, trainer.obey, recoverable).serve()
        finally:
            trainer.close()
        parallel.destroy()


if __name__ == "__main__":
    main()
