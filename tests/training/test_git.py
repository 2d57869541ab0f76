"""What git is asked, with the real git; a repository that wants to run programs runs none."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gpu_monitor.training.capture_child import find_git, keep_diff
from gpu_monitor.training.git import DIFF_BYTES, NoAnswer, read_checkout
from gpu_monitor.training.topics import DIFF

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration of whoever runs the tests, and no repository around."""
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "global"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))


def run(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    run(folder, "init", "-q", "-b", "work")
    (folder / "train.py").write_text("lr = 1\n")
    (folder / "other.bin").write_bytes(b"x")
    run(folder, "add", ".")
    run(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_clean_checkout(checkout: Path) -> None:
    run(checkout, "remote", "add", "origin", "https://me:secret@host/a.git")
    found = read_checkout(checkout)
    assert found.commit == run(checkout, "rev-parse", "HEAD")
    assert (found.branch, found.diff, found.is_cut, found.reason) == ("work", b"", False, None)
    assert Path(found.root) == checkout.resolve()
    facts, diff = find_git([checkout])
    assert (facts["dirty"], facts["remote"], diff) == (False, "https://me:***@host/a.git", None)


def test_changes_are_in_the_diff_staged_or_not_from_a_folder_below(checkout: Path) -> None:
    below = checkout / "below"
    below.mkdir()
    (checkout / "train.py").write_text("lr = 2\napi_key = 'abc'\n")
    (checkout / "other.bin").write_bytes(b"y")
    run(checkout, "add", "other.bin")
    (checkout / "new.txt").write_text("untracked")
    found = read_checkout(below)
    assert found.diff is not None
    assert b"-lr = 1\n+lr = 2\n" in found.diff
    assert b"other.bin" in found.diff
    assert b"untracked" not in found.diff
    facts, diff = find_git([below])
    assert facts["dirty"] is True
    assert facts["diff"] == DIFF
    assert diff is not None
    assert "+api_key = '***'" in diff


def test_a_detached_head_and_a_repository_without_commits(checkout: Path, tmp_path: Path) -> None:
    run(checkout, "checkout", "-q", "--detach")
    assert read_checkout(checkout).branch is None
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    run(fresh, "init", "-q", "-b", "first")
    found = read_checkout(fresh)
    assert (found.commit, found.branch, found.diff, found.reason) == (
        None,
        "first",
        None,
        "there is no commit yet",
    )


def test_a_long_diff_is_cut_and_said(checkout: Path, tmp_path: Path) -> None:
    (checkout / "train.py").write_text("".join(f"line {number}\n" for number in range(150_000)))
    found = read_checkout(checkout)
    assert found.diff is not None
    assert (len(found.diff), found.is_cut) == (DIFF_BYTES, True)
    facts, diff = find_git([checkout])
    assert facts["diff_cut_at_bytes"] == DIFF_BYTES
    assert diff is not None
    kept = keep_diff(diff, tmp_path / "experiment")
    assert kept["type"] == "text/plain; charset=utf-8"
    assert (tmp_path / "experiment" / kept["file"]).read_text() == diff
    assert keep_diff("+a\n", tmp_path / "experiment") == {"data": "+a\n"}


def test_where_there_is_no_repository_no_git_or_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    with pytest.raises(NoAnswer, match="is in no git repository"):
        read_checkout(tmp_path)
    assert find_git([tmp_path, checkout])[0]["branch"] == "work"
    assert find_git([tmp_path])[0] == {"reason": f"{tmp_path} is in no git repository"}
    assert find_git([]) == ({"reason": "no folder to look in"}, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoAnswer, match="not installed"):
        read_checkout(checkout)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_repository_of_another_user_is_left_alone(checkout: Path) -> None:
    for path in (checkout, checkout / ".git"):
        os.chown(path, 12345, 12345)
    assert "belongs to another user" in find_git([checkout])[0]["reason"]


def test_a_command_that_hangs_is_ended(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "git").write_text("#!/bin/sh\nsleep 600 & wait\n")
    (tools / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(NoAnswer, match="git rev-parse took longer"):
        read_checkout(checkout, seconds=0.2)


# Each way in which a repository's own configuration names a program that `git diff`, `rev-parse` or `config` may run.
HOSTILE = {
    "fsmonitor": [("core.fsmonitor", "{trap}")],
    "external": [("diff.external", "{trap}")],
    "driver": [("diff.evil.command", "{trap}")],
    "textconv": [("diff.evil.textconv", "{trap}")],
    "clean": [("filter.evil.clean", "{trap}"), ("filter.evil.required", "true")],
    "process": [("filter.evil.process", "{trap}"), ("filter.evil.required", "true")],
    "odd name": [("filter.ev=il.clean", "{trap}")],
    "pager": [("core.pager", "{trap}"), ("pager.diff", "{trap}")],
    "hooks": [("core.hooksPath", "{folder}")],
    "ssh": [("core.sshCommand", "{trap}"), ("remote.origin.url", "ssh://host/a")],
    "promisor": [
        ("core.repositoryFormatVersion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.promisor", "true"),
        ("remote.origin.url", "ext::{trap}"),
        ("protocol.ext.allow", "always"),
    ],
    "signing": [("gpg.program", "{trap}"), ("log.showSignature", "true")],
    "askpass": [("core.askPass", "{trap}"), ("credential.helper", "!{trap}")],
    "alias": [("alias.diff", "!{trap}"), ("alias.rev-parse", "!{trap}")],
    "editor": [("core.editor", "{trap}"), ("sequence.editor", "{trap}")],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_repository_runs_nothing(kind: str, checkout: Path, tmp_path: Path) -> None:
    folder = tmp_path / "traps"
    folder.mkdir()
    mark = tmp_path / "sprung"
    for name in ("trap", "post-index-change", "pre-commit", "reference-transaction", "fsmonitor-watchman"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {mark}\ncat\n")
        (folder / name).chmod(0o755)
        shutil.copy(folder / name, checkout / ".git/hooks" / name)
    (checkout / ".gitattributes").write_text("*.py diff=evil filter=evil\n*.bin filter=ev=il diff=evil\n")
    run(checkout, "add", ".gitattributes")
    run(checkout, "commit", "-q", "-m", "attributes")
    (checkout / "train.py").write_text("lr = 3\n")
    mark.unlink(missing_ok=True)
    for name, value in HOSTILE[kind]:
        filled = value.format(trap=folder / "trap", folder=folder)
        subprocess.run(["git", "config", "--local", name, filled], cwd=checkout, check=True)
    if kind == "promisor":  # an object that is not there would be fetched
        blob = run(checkout, "rev-parse", "HEAD:train.py")
        (checkout / ".git/objects" / blob[:2] / blob[2:]).unlink()
    mark.unlink(missing_ok=True)
    try:
        found = read_checkout(checkout)
    except NoAnswer:
        found = None
    assert not mark.exists(), mark.read_text()
    if kind in ("odd name", "promisor"):
        assert found is not None
        assert found.diff is None
        assert found.reason
    else:
        assert found is not None
        assert found.diff is not None
        assert b"+lr = 3" in found.diff


def test_the_traps_would_spring(checkout: Path, tmp_path: Path) -> None:
    """The test above is worth something: plain git runs them."""
    mark, trap = tmp_path / "sprung", tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\necho sprung >> {mark}\ncat\n")
    trap.chmod(0o755)
    for name in ("core.fsmonitor", "diff.external", "filter.evil.clean"):
        if name == "filter.evil.clean":
            (checkout / ".gitattributes").write_text("*.py filter=evil\n")
        subprocess.run(["git", "config", "--local", name, str(trap)], cwd=checkout, check=True)
        (checkout / "train.py").write_text(f"lr = {name!r}\n")
        mark.unlink(missing_ok=True)
        subprocess.run(["git", "diff", "HEAD"], cwd=checkout, capture_output=True, check=False)
        assert mark.exists(), name
        subprocess.run(["git", "config", "--local", "--unset", name], cwd=checkout, check=True)


def test_a_filter_of_the_user_keeps_working(checkout: Path, tmp_path: Path) -> None:
    """As git-lfs: the repository chooses it by attribute, the user's own configuration says what it runs."""
    subprocess.run(["git", "config", "--global", "filter.shout.clean", "tr a-z A-Z"], check=True)
    (checkout / ".gitattributes").write_text("*.py filter=shout\n")
    (checkout / "train.py").write_text("lr = 5\n")
    found = read_checkout(checkout)
    assert found.diff is not None
    assert b"+LR = 5" in found.diff
    # The same name in the repository's configuration does not replace it.
    subprocess.run(
        ["git", "config", "--local", "filter.shout.clean", f"touch {tmp_path}/sprung; cat"],
        cwd=checkout,
        check=True,
    )
    found = read_checkout(checkout)
    assert found.diff is not None
    assert b"+LR = 5" in found.diff
    assert not (tmp_path / "sprung").exists()


def test_files_elsewhere_are_not_compared(checkout: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "home"
    elsewhere.mkdir()
    (elsewhere / "train.py").write_text("private\n")
    run(checkout, "config", "core.worktree", str(elsewhere))
    with pytest.raises(NoAnswer, match="elsewhere"):
        read_checkout(checkout)


def test_a_dirty_submodule_is_not_looked_into(checkout: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    run(inner, "init", "-q")
    (inner / "a").write_text("a")
    run(inner, "add", ".")
    run(inner, "commit", "-q", "-m", "inner")
    run(checkout, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), "inner")
    run(checkout, "commit", "-q", "-m", "submodule")
    mark, trap = tmp_path / "sprung", tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\necho sprung >> {mark}\n")
    trap.chmod(0o755)
    run(checkout / "inner", "config", "core.fsmonitor", str(trap))
    (checkout / "inner" / "a").write_text("b")
    found = read_checkout(checkout)
    assert found.diff == b""
    assert not mark.exists()
