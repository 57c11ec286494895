# SPDX-License-Identifier: Apache-2.0
"""Models in Hugging Face's layout: in a directory, or on the hub.

The hub is reached through its own client: HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE count.
"""

from pathlib import Path

from tandem_api.errors import Problem, TryAgain, UserError
from tandem_api.spec.model import HuggingFaceSource

_DESCRIPTION = ("*.json", "*.jinja", "*.txt", "*.model")
_WEIGHTS = "*.safetensors"


def hugging_face_directory(source: HuggingFaceSource, *, weights: bool = False) -> Path:
    """The directory with the model's config and tokenizer, and ``weights`` if they are wanted.

    Of a hub id that is a directory of the client's cache; what it lacks is downloaded, by one process at a time.

    Raises:
        UserError: the hub has no such model or revision, or does not give it to this token.
        TryAgain: the hub cannot be reached, and the model is not in the cache.
    """
    directory = Path(source.path)
    if directory.is_absolute() or directory.is_dir():
        return directory
    # Slow to import, and only those who load models have it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [*_DESCRIPTION, *((_WEIGHTS,) if weights else ())]
    try:
        return Path(snapshot_download(source.path, revision=source.revision, allow_patterns=patterns))
    except RevisionNotFoundError as error:
        message = f"{source.path} has no revision {source.revision} on the hub"
        raise UserError(Problem("spec.model.source.hf.revision", message)) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        message = (
            f"{source.path} is no directory in this container, and the hub has no such model that it would give to "
            "this token; mount the directory, or correct the name, or set HF_TOKEN"
        )
        raise UserError(Problem("spec.model.source.hf.path", message)) from error
    except Exception as error:  # what is left is the network's, in the classes of whichever library the client has
        raise TryAgain(
            f"spec.model.source.hf.path: {source.path} is no directory in this container, and the hub cannot be "
            f"reached; open the network, or mount the model: {error}"
        ) from error
