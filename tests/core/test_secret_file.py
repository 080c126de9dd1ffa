"""A secret that another user can read is none: who counts as another user, and who refuses to start."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from claude_contract import secret_file
from claude_contract.attestation import signer_from_config
from claude_contract.errors import ConfigError
from kong_claude.problem import Problem
from kong_claude_local.state import secret

ME, OTHER, GROUP = 1000, 1001, 2000


@pytest.mark.parametrize(
    ("mode", "owner", "group", "reader", "fine"),
    [
        (0o400, 0, 0, 0, True),
        (0o600, 0, 0, 0, True),
        (0o400, ME, ME, ME, True),
        (0o444, 0, 0, 0, False),
        (0o644, ME, ME, ME, False),
        (0o404, 0, 0, 0, False),
        (0o402, 0, 0, 0, False),  # written by others: their value would be believed
        (0o440, 0, 0, 0, False),
        (0o440, ME, GROUP, ME, False),  # our own: chmod is ours to give
        (0o440, 0, GROUP, ME, True),  # a pod that is not root, with fsGroup
        (0o460, 0, GROUP, ME, False),
        (0o444, 0, GROUP, ME, False),
        (0o440, 0, 2001, ME, False),  # a group that we are not in
        (0o440, 0, GROUP, 0, False),
        (0o400, OTHER, OTHER, 0, False),  # root reads everything, but so does the owner
        (0o400, OTHER, OTHER, ME, False),
    ],
)
def test_who_may_read(mode: int, owner: int, group: int, reader: int, fine: bool) -> None:
    found = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, owner, group, 10, 0, 0, 0))
    problem = secret_file.exposure(found, reader, {reader, GROUP})
    assert (problem is None) is fine
    if problem and owner in (0, reader):
        assert f"mode {mode:04o}" in problem and "chmod 0400" in problem
    elif problem:
        assert f"chown {reader}" in problem


@pytest.fixture
def exposed(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("s" * 40)
    path.chmod(0o444)
    return path


def in_a_plugin(path: Path) -> str:
    signer = signer_from_config({"secret_file": str(path)})
    assert signer
    return bytes(signer.key).decode()  # type: ignore[arg-type]


def in_the_local_stack(path: Path) -> str:
    return secret(path.name)


READERS = [(in_a_plugin, ConfigError), (in_the_local_stack, Problem), (secret_file.read, secret_file.SecretFileError)]


@pytest.mark.parametrize(("read", "refusal"), READERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_file_for_all_is_refused_by_name_mode_and_remedy(
    read: Callable[[Path], str], refusal: type[Exception], exposed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KONG_CLAUDE_HOME", str(exposed.parent))
    with pytest.raises(refusal) as refused:
        read(exposed)
    for word in (str(exposed), "mode 0444", f"chmod 0400 {exposed}"):
        assert word in str(refused.value)
    assert "ssss" not in str(refused.value)
    exposed.chmod(0o400)
    assert read(exposed) == "s" * 40


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), (b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "not UTF-8")]
)
def test_what_is_no_secret(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o400)
    with pytest.raises(secret_file.SecretFileError, match=f"{path} .*{said}"):
        secret_file.read(path)
    if not content:  # what another process would read
        with pytest.raises(secret_file.SecretFileError, match=f"{path} .*{said}"):
            secret_file.opened(path)


def test_a_link_counts_as_what_it_leads_to(exposed: Path, tmp_path: Path) -> None:
    """Kubernetes shows each key of a Secret as a link."""
    link = tmp_path / "link"
    link.symlink_to(exposed)
    with pytest.raises(secret_file.SecretFileError, match="mode 0444"):
        secret_file.read(link)
    exposed.chmod(0o400)
    assert secret_file.read(link) == "s" * 40
