"""A spec's files land beneath their directory and nowhere else."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from jobcluster_worker.launcher import files
from jobcluster_worker.launcher.files import BadFile


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    "name", ["", "/", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "./a", "a/", "a/.", "n\0l", "x" * 256]
)
def test_a_name_that_is_no_path_within_is_refused(name: str) -> None:
    with pytest.raises(BadFile, match="files: "):
        files.decode({name: encoded(b"x")})


def test_a_file_that_is_a_folder_too_is_refused() -> None:
    with pytest.raises(BadFile, match="'a' is a file and a folder"):
        files.decode({"a": encoded(b"x"), "a/b": encoded(b"y")})


def test_what_is_no_base64_is_refused_by_name() -> None:
    with pytest.raises(BadFile, match="'a' is not base64"):
        files.decode({"a": "no base64!"})


def test_more_than_a_mebibyte_in_all_is_refused() -> None:
    half = encoded(b"x" * (1 << 19))
    assert len(files.decode({"a": half, "b": half})) == 2
    with pytest.raises(BadFile, match="1048577 bytes"):
        files.decode({"a": half, "b": half, "c": encoded(b"x")})


def test_files_and_their_folders_are_written_executable_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.write(str(tmp_path), {"a/b/run": b"#!/bin/sh\n", "c": b"\0\xff"})
    finally:
        os.umask(before)
    assert (tmp_path / "a/b/run").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "c").read_bytes() == b"\0\xff"
    assert (tmp_path / "a/b/run").stat().st_mode & 0o777 == 0o755


def test_no_link_is_followed_neither_for_a_file_nor_for_a_folder(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "kept").write_text("kept")
    (inside / "folder").symlink_to(outside)
    (inside / "file").symlink_to(outside / "kept")
    for name in ("folder/new", "file"):
        with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
            files.write(str(inside), {name: b"written"})
    assert os.listdir(outside) == ["kept"]
    assert (outside / "kept").read_text() == "kept"


@pytest.mark.skipif(os.getuid() != 0, reason="root lends no rights of others here")
def test_the_rights_of_a_uid_are_its_own_and_end_with_the_block(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    tmp_path.chmod(0o777)
    with files.rights_of(100_001):
        with pytest.raises(PermissionError):
            secret.read_text()
        with pytest.raises(PermissionError):
            (tmp_path / "secret").write_text("y")
    assert secret.read_text() == "x"
