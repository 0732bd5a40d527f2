import os
from pathlib import Path

import pytest
from jobcluster_worker import templates


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "templates"
    (root / "worker" / "scripts").mkdir(parents=True)
    (root / "worker" / "scripts" / "run.sh").write_text("echo run\n")
    (root / "hello.sh").write_text("echo hello\n")
    (root / "folder").mkdir()
    (tmp_path / "outside").write_text("secret")
    (root / "link-inside").symlink_to("worker/scripts/run.sh")
    (root / "link-outside").symlink_to("../outside")
    (root / "link-absolute").symlink_to(tmp_path / "outside")
    (root / "link-folder").symlink_to("..")
    (root / "link-proc").symlink_to("/proc/self/root/etc/passwd")
    return root


@pytest.mark.parametrize(
    "path", ["hello.sh", "worker/scripts/run.sh", "link-inside", "./hello.sh", "worker//scripts/run.sh"]
)
def test_a_file_beneath_the_directory_is_found(directory: Path, path: str) -> None:
    assert templates.resolve(directory, path) == os.path.normpath(path)


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "worker/../../outside",
        "worker/../hello.sh",
        "/etc/passwd",
        "/proc/self/fd/3",
        "link-outside",
        "link-absolute",
        "link-folder/outside",
        "link-proc",
        "",
        "a\0b",
    ],
)
def test_nothing_leads_out_of_the_directory(directory: Path, path: str) -> None:
    with pytest.raises(templates.TemplateEscapes):
        templates.resolve(directory, path)


@pytest.mark.parametrize(
    "path", ["none.sh", "none/none.sh", "hello.sh/x", "x" * 5000, "%2e%2e/outside", "．．/outside"]
)
def test_a_template_that_is_not_there_is_named(directory: Path, path: str) -> None:
    with pytest.raises(templates.TemplateNotFound) as caught:
        templates.resolve(directory, path)
    assert repr(path) in str(caught.value)


def test_a_folder_is_not_a_template(directory: Path) -> None:
    with pytest.raises(templates.NotATemplate, match="folder"):
        templates.resolve(directory, "folder")


def test_without_a_template_directory_the_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(templates.TemplateNotFound, match="template_directory"):
        templates.resolve(None, "hello.sh")
    with pytest.raises(templates.TemplateNotFound, match="none"):
        templates.resolve(tmp_path / "none", "hello.sh")


def test_a_tasks_own_user_needs_the_rights_of_others(directory: Path) -> None:
    assert templates.resolve(directory, "hello.sh", own_uid=True) == "hello.sh"
    (directory / "hello.sh").chmod(0o750)
    with pytest.raises(templates.TemplateDenied, match=r"hello\.sh.*Permission denied"):
        templates.resolve(directory, "hello.sh", own_uid=True)
    (directory / "worker").chmod(0o700)
    with pytest.raises(templates.TemplateDenied, match="enter worker"):
        templates.resolve(directory, "worker/scripts/run.sh", own_uid=True)


def test_only_the_path_to_the_directory_may_be_closed_to_others(directory: Path) -> None:
    directory.parent.chmod(0o700)
    assert templates.resolve(directory, "worker/scripts/run.sh", own_uid=True) == "worker/scripts/run.sh"


def test_a_link_swapped_while_it_is_resolved_never_leads_out(directory: Path) -> None:
    inside, outside, swapped = (directory / name for name in ("swap-inside", "swap-outside", "swapped"))
    for _ in range(500):
        inside.symlink_to("hello.sh")
        outside.symlink_to("../outside")
        inside.rename(swapped)
        assert templates.resolve(directory, "swapped") == "swapped"
        outside.rename(swapped)
        with pytest.raises(templates.TemplateEscapes):
            templates.resolve(directory, "swapped")
