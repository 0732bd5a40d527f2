"""Tokens: only hashes are kept, and only compare_digest compares them."""

from __future__ import annotations

import ast
import hashlib
import inspect
from pathlib import Path

import pytest
from jobcluster_common.errors import Unauthenticated
from jobcluster_common.settings import SettingsError
from jobcluster_controller.auth import tokens
from jobcluster_controller.auth.roles import Access, Role, permits
from jobcluster_controller.auth.tokens import Tokens

ADMIN, VIEWER = "the-token-of-an-admin", "the-token-of-a-viewer"


def test_each_token_has_its_role(tmp_path: Path) -> None:
    clear, hashed = tmp_path / "admin", tmp_path / "viewer"
    clear.write_text(f"{ADMIN}\nan-older-token-of-an-admin\n")
    hashed.write_text(f"sha256:{hashlib.sha256(VIEWER.encode()).hexdigest()}\n")
    known = Tokens.read({Role.ADMIN: clear, Role.VIEWER: hashed, Role.JOIN: None})
    assert known.role_of(f"Bearer {ADMIN}") is Role.ADMIN
    assert known.role_of("bearer  an-older-token-of-an-admin ") is Role.ADMIN
    assert known.role_of(f"Bearer {VIEWER}") is Role.VIEWER
    assert ADMIN not in repr(vars(known))


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer nobody", ADMIN, "Bearer é"]
)
def test_anything_else_is_nobody(header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        Tokens.of({ADMIN: Role.ADMIN}).role_of(header)


@pytest.mark.parametrize("content", ["", " \n", "short", "sha256:zz", "sha256:" + "0" * 63])
def test_a_file_without_a_token_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "admin.token"
    file.write_text(content)
    with pytest.raises(SettingsError, match=r"admin\.token: auth\.admin"):
        Tokens.read({Role.ADMIN: file})


def test_two_roles_cannot_share_a_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(ADMIN)
    with pytest.raises(SettingsError, match="the same token"):
        Tokens.read({Role.ADMIN: file, Role.VIEWER: file})


def test_a_token_is_compared_by_compare_digest_only() -> None:
    tree = ast.parse(inspect.getsource(tokens))
    (role_of,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "role_of"]
    for comparison in [n for n in ast.walk(role_of) if isinstance(n, ast.Compare)]:
        assert not {"given", "digest", "token"} & {
            n.id for n in ast.walk(comparison) if isinstance(n, ast.Name)
        }
    assert "compare_digest" in ast.dump(role_of)


def test_roles_grow_and_join_stands_apart() -> None:
    expected = {
        None: {Access.PUBLIC},
        Role.VIEWER: {Access.PUBLIC, Access.VIEWER},
        Role.OPERATOR: {Access.PUBLIC, Access.VIEWER, Access.OPERATOR},
        Role.ADMIN: {Access.PUBLIC, Access.VIEWER, Access.OPERATOR, Access.ADMIN},
        Role.JOIN: {Access.PUBLIC, Access.JOIN},
    }
    for role, allowed in expected.items():
        assert {access for access in Access if permits(role, access)} == allowed
