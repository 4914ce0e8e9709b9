"""Folders and hub repositories of encoders, also of those that are no longer plain."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import AutoModel

from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from tests.helpers import tiny_backbone
from tests.model.models import TINY, randomise

IDS = torch.randint(1, TINY["vocab_size"], (3, 8), generator=torch.Generator().manual_seed(0))
DENSE = "encoder.layer.1.output.dense"


@pytest.fixture
def encoder() -> MiniBert:
    return randomise(MiniBert(BertConfig(**TINY), "cls"))


def saved(encoder: MiniBert, folder: Path) -> tuple[Tensor, MiniBert]:
    """What transformers computes with the saved folder, and the encoder that we read."""
    encoder.save_pretrained(folder)
    theirs = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return theirs(IDS).last_hidden_state, MiniBert.from_pretrained(folder)


def assert_same(encoder: MiniBert, folder: Path) -> None:
    theirs, ours = saved(encoder, folder)
    with torch.no_grad():
        expected = encoder(IDS)
        pooled = encoder.pooler(expected[:, 0])
        assert torch.allclose(theirs, expected, rtol=1e-4, atol=1e-4)
        assert torch.allclose(ours(IDS), expected, rtol=1e-4, atol=1e-4)
        assert torch.allclose(ours.pooler(expected[:, 0]), pooled, rtol=1e-4, atol=1e-4)


def test_a_parametrised_encoder_is_saved_as_it_computes(encoder, tmp_path):
    weight_norm(encoder.get_submodule(DENSE))
    weight_norm(encoder.pooler.dense)
    with torch.no_grad():
        encoder.get_submodule(DENSE).parametrizations.weight.original0.mul_(1.5)
        encoder.pooler.dense.parametrizations.weight.original0.mul_(0.5)
    names = [name for name, _ in encoder.named_parameters()]
    assert_same(encoder, tmp_path / "saved")
    assert [name for name, _ in encoder.named_parameters()] == names


def test_hooks_do_not_change_what_is_saved(encoder, tmp_path):
    before = encoder.state_dict()
    encoder.get_submodule(DENSE).register_forward_hook(lambda *_: None)
    encoder.save_pretrained(tmp_path / "saved")
    after = MiniBert.from_pretrained(tmp_path / "saved").state_dict()
    assert before.keys() == after.keys()
    assert all(x.equal(after[name]) for name, x in before.items())


def test_an_encoder_that_has_no_such_weights_is_not_saved(encoder, tmp_path):
    encoder.encoder.layer[1].output.dense = nn.Identity()
    with pytest.raises(WeightsError, match=rf"{DENSE}\.weight: Identity has no such parameter"):
        encoder.save_pretrained(tmp_path / "saved")
    encoder.encoder.layer[1].output = nn.Identity()
    with pytest.raises(WeightsError, match=rf"{DENSE}: the encoder has no such module any more"):
        encoder.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_a_hook_computes_is_not_saved(encoder, tmp_path):
    torch.nn.utils.weight_norm(encoder.get_submodule(DENSE))
    with pytest.raises(WeightsError, match=r"weight: Linear has no such parameter; put a plain"):
        encoder.save_pretrained(tmp_path / "saved")


def test_a_hub_id_takes_a_revision_and_a_cache(monkeypatch, tmp_path):
    folder, calls = tiny_backbone(tmp_path / "backbone"), []

    def snapshot_download(name, *, allow_patterns, **options):
        calls.append((name, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    options = {"revision": "v1", "cache_dir": tmp_path, "token": "secret", "local_files_only": True}
    encoder = MiniBert.from_pretrained("somebody/small", **options)
    assert calls == [("somebody/small", options)] * 2
    assert encoder.name_or_path == "somebody/small"
    calls.clear()
    MiniBert.from_pretrained("somebody/small")
    assert calls == [("somebody/small", {})] * 2
    with pytest.raises(TypeError, match="subfolder"):
        MiniBert.from_pretrained("somebody/small", subfolder="x")


class Hub:
    """``huggingface_hub.HfApi``, which keeps what it is given."""

    def __init__(self, token: str):
        self.token, self.uploads = token, []

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.private = private
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        encoder = MiniBert.from_folder(folder_path)
        files = sorted(path.name for path in Path(folder_path).iterdir())
        self.uploads.append((repo_id, encoder, files, revision, commit_message))
        return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")


@pytest.fixture
def hubs(monkeypatch) -> list[Hub]:
    made = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: made.append(Hub(token)) or made[-1])
    return made


def test_push_to_hub(encoder, hubs, cased_tokenizer):
    address = encoder.push_to_hub("mine", cased_tokenizer, token="secret", private=True)
    (hub,) = hubs
    assert (hub.token, hub.private, address) == ("secret", True, "hub/me/mine/commit/1")
    ((name, uploaded, files, revision, message),) = hub.uploads
    assert (name, revision, message) == ("me/mine", None, "Upload a MiniBert encoder")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert torch.equal(uploaded(IDS), encoder(IDS))


def test_push_to_hub_takes_the_token_that_is_there(encoder, hubs, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "kept")
    encoder.push_to_hub("mine", revision="next", commit_message="Better")
    assert hubs[0].token == "kept"
    assert hubs[0].uploads[0][3:] == ("next", "Better")


def test_push_to_hub_without_a_token(encoder, hubs, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(WeightsError, match=r"pushing 'mine' needs a token .* run `hf auth login`"):
        encoder.push_to_hub("mine")
    assert not hubs


def test_push_to_hub_that_fails(encoder, hubs, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError("403\nForbidden")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(WeightsError, match=r"pushing 'mine' .* failed \(OSError: 403 Forbidden\)"):
        encoder.push_to_hub("mine", token="secret")
