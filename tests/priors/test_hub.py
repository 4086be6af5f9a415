"""``hf://`` addresses: pinned, from the local cache, never from the network unless asked."""

from __future__ import annotations

import hashlib
import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from invdiff.priors import load_prior, shipped_priors
from invdiff.priors.hub import fetch

pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = "ct-128.safetensors"


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A cache with one repository of one file, and no network."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--lab--priors"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    shutil.copy(shipped_priors()["ct-128"], folder / "snapshots" / COMMIT / FILE)
    return hashlib.sha256(shipped_priors()["ct-128"].read_bytes()).hexdigest()


def test_a_pinned_file_in_the_cache_is_loaded(digest: str) -> None:
    x = torch.zeros(1, 1, 128, 128)
    for address in (f"hf://lab/priors/{FILE}@{COMMIT}", f"hf://lab/priors/{FILE}#{digest}",
                    f"hf://lab/priors/{FILE}@main#{digest}"):  # fmt: skip
        prior = load_prior(address)
        assert (prior.info.name, prior.info.sha256) == (f"lab/priors/{FILE}", digest)
        assert prior.info.details["source"] == address
        assert torch.equal(prior(x, 1.0), load_prior("ct-128")(x, 1.0))
    assert fetch(f"hf://lab/priors@{COMMIT}").name == COMMIT  # the whole repository


def test_addresses_that_are_refused(digest: str) -> None:
    for address, kind, match in (
        (f"hf://lab/priors/{FILE}", ValueError, "not pinned, so it may change"),
        (f"hf://lab/priors/{FILE}@main", ValueError, "not pinned"),
        (f"hf://lab/priors@main#{digest}", ValueError, "not pinned"),  # a digest pins one file, not a folder
        (f"hf://lab/priors/{FILE}#{'0' * 64}", ValueError, f"has the sha256 {digest}"),
        ("hf://lab", ValueError, "Expected hf://owner/name@commit"),
        (f"hf://lab/priors/other.pt@{COMMIT}", FileNotFoundError, "not in the local cache.*online=True"),
        (f"hf://lab/others@{COMMIT}", FileNotFoundError, "not in the local cache"),
    ):
        with pytest.raises(kind, match=match):
            load_prior(address)
