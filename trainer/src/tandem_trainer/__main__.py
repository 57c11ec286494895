# SPDX-License-Identifier: Apache-2.0
"""One trainer rank, as torchrun starts it: ``torchrun … -m tandem_trainer``."""

import logging
import os
import warnings

from tandem_api import environment as env
from tandem_api import logs, tls
from tandem_api.environment import Environment
from tandem_trainer.rendezvous import meeting_point
from tandem_trainer.server import CommandRefused, Server, listen


def main() -> None:
    """Listen, find the device, then do what the sidecar says until it says finish."""
    environment = Environment()
    job = environment.job()
    rank = int(os.environ["LOCAL_RANK"])
    logs.configure(job=job.name, rank=int(os.environ["RANK"]))
    run_dir = environment.path(env.RUN_DIR)
    _quieten()
    # Before the imports below, which take longer than a sidecar likes to be refused and a port stays free.
    meeting = meeting_point()
    server = Server(listen(run_dir / f"trainer-{rank}.sock"))

    from tandem_api.errors import TandemError
    from tandem_handoff import HandoffError
    from tandem_trainer.device import activate

    with activate(rank) as device:
        from tandem_trainer import parallel
        from tandem_trainer.checkpoint import CheckpointUnreadable
        from tandem_trainer.trainer import Places, Trainer

        places = Places(
            run_dir,
            environment.path(env.CHECKPOINT_DIR),
            environment.text(env.ORCHESTRATOR_URL),
            environment.secrets().token,
            tls.member_context(environment.tls_directory()),
        )
        trainer = Trainer(job, places, device, meeting)
        try:
            recoverable = (CommandRefused, CheckpointUnreadable, parallel.CollectiveFailed, HandoffError, TandemError)
            server.serve(trainer.obey, recoverable)
        finally:
            trainer.close()


def _quieten() -> None:
    """Keep what Megatron and torch say of their own deprecations out of the job's logs."""
    warnings.filterwarnings("ignore", module=r"megatron|mbridge|torch|tandem_trainer.device")
    logging.getLogger("megatron").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
