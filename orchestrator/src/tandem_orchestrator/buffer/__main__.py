# SPDX-License-Identifier: Apache-2.0
"""``python -m tandem_orchestrator.buffer ls|show|export DIR``: a buffer as JSON, or as Parquet; nothing is changed.

``tandem buffer`` shows the same for people. In a cluster: ``kubectl exec JOB-orchestrator-... -- python -m
tandem_orchestrator.buffer ls /var/lib/tandem``. What only one command needs is loaded by that command.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tandem_api.errors import UserError
from tandem_orchestrator.buffer.reading import Reader


def listed(arguments: argparse.Namespace) -> dict[str, Any]:
    """``ls``."""
    with Reader(arguments.place) as reader:
        return asdict(reader.overview())


def shown(arguments: argparse.Namespace) -> dict[str, Any]:
    """``show``."""
    from tandem_orchestrator.buffer.decoding import tokenizer_of

    with Reader(arguments.place) as reader:
        found = asdict(reader.trajectory(arguments.trajectory))
        tokenizer = tokenizer_of(reader.path.parent, arguments.tokenizer)
    for part in found["segments"]:
        part["text"] = tokenizer.text(part["tokens"]) if tokenizer else None
    return found


def exported(arguments: argparse.Namespace) -> dict[str, Any]:
    """``export``."""
    from tandem_orchestrator.buffer.decoding import tokenizer_of
    from tandem_orchestrator.buffer.parquet import COLUMNS, export

    with Reader(arguments.place) as reader:
        tokenizer = tokenizer_of(reader.path.parent, arguments.tokenizer)
        count = export(reader, arguments.out, arguments.batch, tokenizer.text if tokenizer else None)
    return {"path": str(arguments.out), "trajectories": count, "columns": {name: text for name, _, text in COLUMNS}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tandem_orchestrator.buffer", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, command in (("ls", listed), ("show", shown), ("export", exported)):
        under = commands.add_parser(name)
        under.set_defaults(command=command)
        under.add_argument("place", type=Path, help="directory of the run, or the buffer's file")
        if name == "show":
            under.add_argument("trajectory")
        if name == "export":
            under.add_argument("--out", type=Path, required=True, help="Parquet file to write")
            under.add_argument("--batch", type=int, help="only what this batch took or gave up")
        if name != "ls":
            under.add_argument("--tokenizer", type=Path, help="directory of the model; absent: the run's")
    arguments = parser.parse_args()
    try:
        json.dump(arguments.command(arguments), sys.stdout)
    except UserError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
