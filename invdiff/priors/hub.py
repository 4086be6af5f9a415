"""Priors by address on the Hugging Face hub: from the local cache, and from the network only when asked.

``hf://owner/name@revision`` is a folder of diffusers, ``hf://owner/name/file.pt@revision`` one file. What is loaded
must be pinned: by a commit as the revision (40 hexadecimal digits), or, for one file, by ``#`` and its sha256. Needs
the extra ``hub``.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

SCHEME = "hf://"
_ADDRESS = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@#]+))?(?:@(?P<revision>[\w./-]+))?(?:#(?P<sha256>[0-9a-f]{64}))?"
)


def fetch(address: str, *, online: bool = False) -> Path:
    """The local file or folder of an address.

    Args:
        online: download it if it is not in the cache.

    Raises:
        ValueError: a malformed address, one without a pin, or a file with another digest.
        FileNotFoundError: not in the cache, and ``online`` is False. ImportError: without the extra ``hub``.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(
            f"Expected hf://owner/name@commit or hf://owner/name/file@commit (or file#sha256), got {address!r}."
        )
    repo, file, revision, sha256 = match["repo"], match["file"], match["revision"], match["sha256"]
    if not re.fullmatch(r"[0-9a-f]{40}", revision or "") and not (file and sha256):
        raise ValueError(
            f"{address} is not pinned, so it may change: give a commit (@ and 40 hexadecimal digits), or for one file "
            f"its sha256 (# and 64 digits)."
        )
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise ImportError(f"{SCHEME} addresses need the package huggingface_hub: pip install 'invdiff[hub]'.") from None
    try:
        if file is None:
            patterns = ["*.json", "*.safetensors", "*.bin"]
            return Path(
                snapshot_download(repo, revision=revision, local_files_only=not online, allow_patterns=patterns)
            )
        path = Path(hf_hub_download(repo, file, revision=revision, local_files_only=not online))
    except LocalEntryNotFoundError:
        if online:
            raise
        raise FileNotFoundError(
            f"{address} is not in the local cache; nothing is downloaded unless asked, load_prior(..., online=True)."
        ) from None
    if sha256 and (got := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
        raise ValueError(f"{address}: the file in the cache has the sha256 {got}.")
    return path
