"""An encoder as a repository on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.hub import save_encoder

_MESSAGE = "Upload a MiniBert encoder"


def push_encoder(
    model: nn.Module,
    repo_id: str,
    tokenizer: Any = None,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = _MESSAGE,
) -> str:
    """Saves an encoder as a repository, which is made where there is none.

    Args:
        model, tokenizer: see ``hub.save_encoder``.
        repo_id: ``user/name``, or a name of the token's user.
        token: with the right to write; that of ``hf auth login`` or ``HF_TOKEN`` if None.
        private: whether a new repository is; the user's default if None.
        revision: the branch; the main one if None.

    Returns:
        the address of the commit.

    Raises:
        WeightsError: there is no token, or the hub refuses or cannot be reached.
    """
    import huggingface_hub  # slow to import

    token = token or huggingface_hub.get_token()
    if not token:
        raise WeightsError(
            f"pushing '{repo_id}' needs a token of the Hugging Face hub: run `hf auth login`, set "
            "HF_TOKEN, or give token="
        )
    api = huggingface_hub.HfApi(token=token)
    with TemporaryDirectory() as place:
        folder = Path(place) / "encoder"
        save_encoder(model, folder, tokenizer)
        try:
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=name, folder_path=folder, revision=revision, commit_message=commit_message
            )
        except Exception as error:  # the hub's transports raise errors without a common base
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(
                f"pushing '{repo_id}' to the Hugging Face hub failed "
                f"({type(error).__name__}: {reason}); check the name, the token's rights and the "
                "connection"
            ) from error
    return commit.commit_url
