# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of the run that a buffer belongs to."""

import os
from pathlib import Path

from tandem_api import manifest
from tandem_api.environment import JOB_FILE, Environment
from tandem_api.model_source import model_directory
from tandem_api.spec import RLJobSpec
from tandem_orchestrator.tokenizer import Tokenizer


def tokenizer_of(directory: Path, given: Path | None) -> Tokenizer | None:
    """The tokenizer of the run in ``directory``; ``None`` where nothing says which it is.

    Raises:
        UserError: the tokenizer that is named is none.
    """
    if given is not None:
        return Tokenizer(given)
    if (directory / "model" / "tokenizer.json").is_file():
        return Tokenizer(directory / "model")
    spec = _spec(directory)
    return Tokenizer(model_directory(spec.model, directory)) if spec else None


def _spec(directory: Path) -> RLJobSpec | None:
    """Of the run: in local mode its manifest lies beside the buffer, in a pod the environment names its file."""
    if (directory / "job.yaml").is_file():
        return manifest.load_manifest(manifest.read(directory / "job.yaml")).spec
    return Environment().job().spec if JOB_FILE in os.environ else None
