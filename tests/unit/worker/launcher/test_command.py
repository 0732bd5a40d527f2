"""From command, path and args to what is executed, or to the errno that says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jobcluster_worker.launcher.command import NotExecutable, Place, Resolver
from jobcluster_worker.launcher.shapes import Spec


def spec(*words: str, **more: Any) -> Spec:
    given: dict[str, Any] = {
        "job_id": "j",
        "task_rank": 0,
        "attempt": 1,
        "command_words": list(words),
        **more,
    }
    return given  # type: ignore[return-value]


class House:
    """A work directory and a PATH of two folders, one of which has a file that may not be executed."""

    def __init__(self, root: Path) -> None:
        self.work, self.first, self.second = root / "work", root / "first", root / "second"
        for directory in (self.work, self.first, self.second):
            directory.mkdir()
        self.make(self.first / "denied", 0o644)
        self.make(self.first / "both", 0o644)
        self.make(self.second / "both", 0o755)
        self.make(self.second / "tool", 0o755)
        self.make(self.work / "script", 0o755)
        (self.first / "folder").mkdir()

    def make(self, path: Path, mode: int) -> None:
        path.touch()
        path.chmod(mode)

    def resolver(self, path: str | None = None) -> Resolver:
        return Resolver(
            cwd=Place(str(self.work), "/seen/work"),
            search_path=f"{self.first}:{self.second}" if path is None else path,
            files={"script"},
            template=self.template,
        )

    def template(self, name: str) -> Place:
        if name != "job.py":
            raise NotExecutable.because(2, f"template {name!r}")
        return Place(str(self.second / "tool"), "/seen/templates/job.py")


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_program_is_found_in_the_first_folder_that_has_an_executable_one(house: House) -> None:
    found = house.resolver().resolve(spec("both", "-x", args=["a b"]))
    assert found.executable == str(house.second / "both")
    assert found.argv == ["both", "-x", "a b"]


def test_a_script_stands_between_the_command_and_the_args_as_the_task_sees_it(house: House) -> None:
    found = house.resolver().resolve(spec("tool", "-u", path="script", args=["1"]))
    assert found.argv == ["tool", "-u", "/seen/work/script", "1"]
    found = house.resolver().resolve(spec("tool", path="job.py"))
    assert found.argv == ["tool", "/seen/templates/job.py"]


def test_a_path_alone_is_executed_itself(house: House) -> None:
    found = house.resolver().resolve(spec(path="script", args=["1"]))
    assert (found.executable, found.argv) == ("/seen/work/script", ["/seen/work/script", "1"])
    assert house.resolver().resolve(spec(path="./script")).executable == "/seen/work/script"


def test_a_word_with_a_slash_is_a_path_in_the_working_directory_or_absolute(house: House) -> None:
    assert house.resolver().resolve(spec("./script")).executable == "/seen/work/./script"
    tool = str(house.second / "tool")
    assert house.resolver().resolve(spec(tool)).executable == tool


def test_an_empty_entry_of_path_is_the_working_directory(house: House) -> None:
    assert house.resolver("").resolve(spec("script")).executable == "/seen/work/script"


@pytest.mark.parametrize(
    ("words", "path", "text"),
    [
        (["none"], "", "ENOENT: 'none': not found in PATH"),
        (["denied"], "", "EACCES: 'denied' in PATH"),
        (["folder"], "", "EACCES: 'folder' in PATH"),
        (["./none"], "", "ENOENT: './none'"),
        (["/none"], "", "ENOENT: '/none'"),
        (["/"], "", "EACCES: '/'"),
        ([""], "", "ENOENT: ''"),
        (["tool"], "none.py", "ENOENT: template 'none.py'"),
        (["tool"], "/none.py", "ENOENT: '/none.py'"),
        (["tool"], "/", "EISDIR: '/'"),
        (["tool\0x"], "", "ENOENT: "),
        ([], "", "ENOENT: neither a command nor a path"),
    ],
)
def test_what_cannot_be_executed_says_errno_and_name(
    house: House, words: list[str], path: str, text: str
) -> None:
    with pytest.raises(NotExecutable) as raised:
        house.resolver().resolve(spec(*words, path=path))
    assert str(raised.value).startswith(text)
