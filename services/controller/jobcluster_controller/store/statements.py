"""Reads named statements out of an .sql file: ``-- :name insert_job`` begins one."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"^-- :name (\w+)$")


def load(file: Path) -> dict[str, str]:
    """Name → statement.

    :raises ValueError: if a name comes twice or a statement has none.
    """
    blocks: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := _NAME.match(line):
            name = match[1]
            if name in blocks:
                raise ValueError(f"{file}: statement {name} comes twice")
            current = blocks[name] = []
        elif line.strip() and not line.lstrip().startswith("--"):
            if current is None:
                raise ValueError(f"{file}: a statement without a name: {line.strip()}")
            current.append(line)
    return {name: "\n".join(lines) for name, lines in blocks.items()}
