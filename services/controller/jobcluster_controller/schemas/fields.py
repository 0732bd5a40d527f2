"""The small types that job specs are made of. Each checks itself, and tells JSON Schema the same rule."""

from __future__ import annotations

import binascii
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from jobcluster_common.settings import parse_size
from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

NUMBER_MAX = 2**53 - 1  # what every JSON reader holds exactly

# Patterns are written for Python and ECMA 262 alike; \x00 is spelt out because [^\0] is not portable.
_NO_NUL = r"^[^\x00]*$"
_NO_DOTS = r"(?!(?:[^\x00]*/)?\.\.(?:/|$))"
_UNIT = r"""(?:[^ \t\r\n'"\\\x00]|\\[^\x00]|'[^'\x00]+'|"(?:[^"\\\x00]|\\[^\x00])+")"""
_COMMAND = rf"""^[ \t\r\n]*{_UNIT}(?:{_UNIT}|[ \t\r\n]|''|"")*$"""
_FRACTION = r"0\.0{0,2}[1-9][0-9]{0,5}"


def _with_fraction(whole: str) -> str:
    return rf"(?:{_FRACTION}|(?:{whole})(?:\.[0-9]{{1,6}})?)"


# As many digits before each prefix as stay below NUMBER_MAX.
_PREFIXED = "|".join(
    f"{_with_fraction(whole)} ?[{prefix}]"
    for whole, prefix in (
        ("[1-9][0-9]{0,11}", "Kk"),
        ("[1-9][0-9]{0,8}", "Mm"),
        ("[1-9][0-9]{0,5}", "Gg"),
        ("[1-7][0-9]{3}|[1-9][0-9]{0,2}", "Tt"),
    )
)
_SIZE = rf"^(?:[1-9][0-9]{{0,14}}(?: ?[Bb])?|(?:{_PREFIXED})[Ii]?[Bb]?)$"
_BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"


def fault(detail: str) -> PydanticCustomError:
    """An error whose message is ``detail`` as it stands."""
    return PydanticCustomError("fault", "{detail}", {"detail": detail})


@dataclass(frozen=True)
class Matches:
    """A string of this form; ``detail`` says it in words, or finds the words for what is wrong with a value."""

    pattern: str
    detail: str | Callable[[str], str]
    max_length: int | None = None

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern.removeprefix("^").removesuffix("$"))

    def _check(self, value: str) -> str:
        if self.max_length is not None and len(value) > self.max_length:
            raise fault(f"is longer than {self.max_length} characters")
        if self._compiled.fullmatch(value) is None:
            raise fault(self.detail if isinstance(self.detail, str) else self.detail(value))
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found = handler(schema) | {"pattern": self.pattern}
        return found | ({} if self.max_length is None else {"maxLength": self.max_length})


@dataclass(frozen=True)
class Read:
    """A value read by ``read`` (which raises ``fault``), described by ``schema``."""

    read: Callable[[Any], Any]
    schema: dict[str, Any]

    def __hash__(self) -> int:
        return hash(self.read)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.schema)


def _read_command(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        if "\0" in value:
            raise fault("has a NUL")
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise fault(f"cannot be split into words: {str(error).lower()}") from None
    elif isinstance(value, list) and all(isinstance(word, str) for word in value):
        words = value
    else:
        raise fault("must be a string or a list of strings")
    if not words or not words[0]:
        raise fault("is empty")
    if any("\0" in word for word in words):
        raise fault("has a NUL")
    return tuple(words)


def _read_content(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, dict) or set(value) != {"base64"} or not isinstance(value["base64"], str):
        raise fault('must be a string or {"base64": "…"}')
    try:
        return binascii.a2b_base64(value["base64"], strict_mode=True)
    except (binascii.Error, ValueError):
        raise fault("is not base64 (RFC 4648, padded)") from None


def _whole(value: Any) -> Any:
    """In JSON 5.0 is the number 5 (JSON Schema's integer says so too)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read_size(value: Any) -> int:
    value = _whole(value)
    good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= NUMBER_MAX
    if not good and not (isinstance(value, str) and re.fullmatch(_SIZE, value)):
        raise fault('must be a size: 1 or more bytes, or a number and K, M, G or T, as in "256MiB"')
    return parse_size(value)


def _wrong_path(value: str) -> str:
    if not value:
        return "is empty"
    return "has a NUL" if "\0" in value else "goes up by .., which is not allowed"


def _wrong_file_name(value: str) -> str:
    if not value or "\0" in value:
        return "is an empty name" if not value else "has a NUL"
    if value.startswith("/"):
        return "is absolute; a file's name is relative to the working directory"
    parts = value.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        return "has an empty part, . or .. in its name"
    return "is deeper than 32 folders, or has a part longer than 255 characters"


WHOLE = BeforeValidator(_whole)  # last in an Annotated, or JSON Schema loses the bounds that stand after it
Text = Annotated[str, Matches(_NO_NUL, "has a NUL")]
Name = Annotated[
    str, Matches(r"^[^\x00-\x1f\x7f]{1,255}$", "must be 1 to 255 characters, none of them control")
]
LabelKey = Annotated[
    str, Matches(r"^[^\x00-\x1f\x7f=]{1,255}$", "must be 1 to 255 characters without = and control")
]
EnvName = Annotated[str, Matches(r"^[^\x00=]+$", "must not be empty, and have no = and no NUL")]
TemplatePath = Annotated[str, Matches(rf"^{_NO_DOTS}[^\x00]+$", _wrong_path, 4095)]
FileName = Annotated[
    str,
    Matches(
        r"^(?!(?:[^\x00]*/)?\.{1,2}(?:/|$))[^/\x00]{1,255}(?:/[^/\x00]{1,255}){0,31}$",
        _wrong_file_name,
        1024,
    ),
]
Command = Annotated[
    tuple[str, ...],
    Read(
        _read_command,
        {
            "anyOf": [
                {"type": "string", "pattern": _COMMAND},
                {
                    "type": "array",
                    "minItems": 1,
                    "prefixItems": [{"type": "string", "pattern": r"^[^\x00]+$"}],
                    "items": {"type": "string", "pattern": _NO_NUL},
                },
            ]
        },
    ),
]
Content = Annotated[
    bytes,
    Read(
        _read_content,
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {"base64": {"type": "string", "pattern": _BASE64}},
                    "required": ["base64"],
                    "additionalProperties": False,
                },
            ]
        },
    ),
]
Size = Annotated[
    int,
    Read(
        _read_size,
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": NUMBER_MAX},
                {"type": "string", "pattern": _SIZE},
            ]
        },
    ),
]
