"""Settings: a TOML file per process, each key also as JOBCLUSTER_BLOCK__KEY; a fault is one line with its remedy."""

from __future__ import annotations

import functools
import ipaddress
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from dynaconf import Dynaconf
from dynaconf.utils.parse_conf import parse_conf_data
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails

PREFIX = "JOBCLUSTER_"
M = TypeVar("M", bound=BaseModel)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])i?)?B?", re.IGNORECASE)
_HOST_PORT = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})")


class SettingsError(Exception):
    """Settings that cannot be used. ``str()`` is one line: file or variable, key, what is wrong, what to do."""


def parse_size(v: int | str) -> int:
    """Bytes: an int, or a number with K, M, G or T (powers of 1024; i and B optional): 1024, "256MiB", "1G".

    :raises ValueError: if it is neither; the message says the form.
    """
    if isinstance(v, int) and not isinstance(v, bool) and v >= 0:
        return v
    match = _SIZE.fullmatch(v.strip()) if isinstance(v, str) else None
    if match is None:
        raise ValueError(
            f'not a size: {v!r}; a size is a number of bytes, or a number and K, M, G or T, as in "256MiB"'
        )
    return int(float(match[1]) * 1024 ** " KMGT".index((match[2] or " ").upper()))


def _address(value: str) -> str:
    match = _HOST_PORT.fullmatch(value)
    if match is None or int(match[1]) > 65535:
        raise ValueError(f'not an address: {value!r}; an address is host:port, as in "127.0.0.1:7443"')
    return value


def _resolve(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError(f"not a file name: {value!r}; give a string")
    base = (info.context or {}).get("directory", Path.cwd())
    return Path(os.path.abspath(base / Path(value).expanduser()))


# A token, or a key in PEM, where the name of its file was meant: it must not be shown.
_SECRET_ITSELF = re.compile(r"^[A-Za-z0-9+/=_-]{32,}$|-----")


def _must_be_file(value: Path) -> Path:
    try:
        found = value.is_file()
    except OSError:  # a name that no file system would take
        found = False
    if not found and _SECRET_ITSELF.search(value.name):
        raise ValueError("must name the file that holds it, and not be the secret itself; name that file")
    if not found:
        raise ValueError(f"no such file: {value}; make it, or name another")
    if not os.access(value, os.R_OK):
        raise ValueError(f"cannot be read: {value}; let this user read it")
    return value


Size = Annotated[int, BeforeValidator(parse_size)]
Address = Annotated[str, AfterValidator(_address)]
# Relative names are relative to the settings file's directory.
AnyPath = Annotated[Path, PlainValidator(_resolve)]
ExistingFile = Annotated[Path, PlainValidator(_resolve), AfterValidator(_must_be_file)]


def is_loopback(address: str) -> bool:
    """Whether host:port can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Block(BaseModel):
    """A block of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class GrpcServerBlock(Block):
    """[grpc_server]: where this process serves gRPC, and with which certificate."""

    addr: Address
    use_tls: bool = True
    crt_file: ExistingFile | None = None
    key_file: ExistingFile | None = None
    ca_file: ExistingFile | None = None

    @model_validator(mode="after")
    def _plain_text_stays_at_home(self) -> Self:
        if not self.use_tls and not is_loopback(self.addr):
            raise ValueError(f"use_tls = false is for loopback only, not {self.addr}; set use_tls = true")
        if (self.crt_file is None) != (self.key_file is None):
            raise ValueError("crt_file and key_file go together; give both or neither")
        return self


class ControllerBlock(Block):
    """[controller]: where the controller's gRPC server is."""

    addr: Address = "127.0.0.1:7443"

    @model_validator(mode="before")
    @classmethod
    def _address_is_addr(cls, data: Any) -> Any:
        if isinstance(data, dict) and "address" in data:
            return {**{k: v for k, v in data.items() if k != "address"}, "addr": data["address"]}
        return data


class LogBlock(Block):
    """[log]."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


_NO_FILE = "no settings file (--config FILE, or JOBCLUSTER_CONFIG)"


def load(
    model: type[M], path: Path | None, environ: Mapping[str, str], elsewhere: frozenset[str] = frozenset()
) -> M:
    """The settings of ``path`` (none: defaults only), overridden by JOBCLUSTER_BLOCK__KEY in ``environ``.

    ``elsewhere`` names what only the other service has ("block" or "block.key"): both may be started in one
    environment, so a variable for one is no fault of the other.

    :raises SettingsError: on an unreadable file, an unknown key, a wrong type or a bad value.
    """
    document = _merged(_defaults(model), _read(path))
    overrides = {keys: raw for keys, raw in _overrides(environ) if not _is_in(elsewhere, keys)}
    for keys, raw in overrides.items():
        _put(document, keys, parse_conf_data(raw, tomlfy=True), _variable(keys))
    context = {"directory": Path.cwd() if path is None else Path(os.path.abspath(path)).parent}
    try:
        return _validate(model, document, context)
    except ValidationError as error:
        # A variable has no type of its own: "1" may be meant as text.
        for keys in {found for e in error.errors() if (found := _override_of(e, overrides))}:
            _put(document, keys, overrides[keys], _variable(keys))
    try:
        return _validate(model, document, context)
    except ValidationError as error:
        # A key that is a typing error is often why another is missing: it is told first.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise SettingsError(_one_line(first, model, path, overrides)) from None


def fail_with_one_line(main: Callable[[], int]) -> Callable[[], int]:
    """For a process's ``main``: a SettingsError becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapper() -> int:
        try:
            return main()
        except SettingsError as error:
            sys.stderr.write(f"{error}\n")
            return 2

    return wrapper


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SettingsError(f"{path}: cannot be read: {reason}; give a readable file with --config") from None
    try:
        # dynaconf's own loader of variables takes every JOBCLUSTER_*; only those with "__" are ours.
        settings = Dynaconf(
            settings_files=[str(path.absolute())],
            core_loaders=["TOML"],
            loaders=[],
            environments=False,
        )
        document = settings.as_dict()
    except Exception as error:  # dynaconf lets through whatever its TOML reader raises
        raise SettingsError(f"{path}: not TOML: {' '.join(str(error).split())}; correct that line") from None
    plain: dict[str, Any] = json.loads(json.dumps(document, default=str))
    return {key.lower(): value for key, value in plain.items()}  # dynaconf makes top-level names upper-case


def _overrides(environ: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], str]]:
    for name in sorted(environ):
        keys = tuple(name.removeprefix(PREFIX).lower().split("__"))
        if name.startswith(PREFIX) and len(keys) > 1 and all(keys):
            yield keys, environ[name]


def _is_in(names: frozenset[str], keys: tuple[str, ...]) -> bool:
    return not names.isdisjoint({keys[0], ".".join(keys[:2])})


def _variable(keys: tuple[str, ...]) -> str:
    return PREFIX + "__".join(keys).upper()


def _put(document: dict[str, Any], keys: tuple[str, ...], value: object, variable: str) -> None:
    here = document
    for key in keys[:-1]:
        inner = here.setdefault(key, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{variable}: {key} is not a block; unset it")
        here = inner
    here[keys[-1]] = value
    if keys == ("controller", "addr"):
        here.pop("address", None)  # its other name, in the file: a variable goes before the file


def _validate(model: type[M], document: dict[str, Any], context: dict[str, Any]) -> M:
    # Strict as JSON: no "yes" for true or "5" for 5, yet file names and enums may be text.
    return model.model_validate_json(json.dumps(document, default=str), strict=True, context=context)


def _override_of(error: ErrorDetails, overrides: Mapping[tuple[str, ...], str]) -> tuple[str, ...] | None:
    keys = tuple(str(part) for part in error["loc"])
    exact = next((keys[:n] for n in range(len(keys), 0, -1) if keys[:n] in overrides), None)
    # A variable can bring in a whole block that is unknown.
    return exact or next((found for found in overrides if found[: len(keys)] == keys), None)


def _one_line(
    error: ErrorDetails, model: type[BaseModel], path: Path | None, overrides: Mapping[tuple[str, ...], str]
) -> str:
    keys = tuple(str(part) for part in error["loc"] if part not in ("function-after", "int", "str"))
    override = _override_of(error, overrides)
    where = _variable(override) if override else str(path or _NO_FILE)
    match error["type"]:
        case "extra_forbidden":
            text = f"unknown key; remove it, or use one of: {', '.join(_known(model, keys[:-1]))}"
        case "missing":
            text = f"missing; add it there, or set {_variable(keys)}"
        case "value_error":
            text = error["msg"].removeprefix("Value error, ")
        case _:
            said = re.sub(r"^[A-Z][a-z]+ should (be )?", r"must \1", error["msg"])
            text = f"{said.replace('a valid ', 'a ')}, not {error['input']!r}; correct it"
    return " ".join(f"{where}: {'.'.join(keys) or 'settings'}: {text}".split())


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    # A block that is not in the file is checked like one that is: its default paths are relative to the file too.
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Block):
            default = field.get_default(call_default_factory=True, validated_data={})
            found[name] = (
                default.model_dump(mode="json", exclude_unset=True) if isinstance(default, Block) else {}
            )
    return found


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    blocks = {
        k: _merged(under[k], v)
        for k, v in over.items()
        if isinstance(v, dict) and isinstance(under.get(k), dict)
    }
    return {**under, **over, **blocks}


def _known(model: type[BaseModel], keys: tuple[str, ...]) -> list[str]:
    here: Any = model
    for key in keys:
        field = here.model_fields.get(key) if isinstance(here, type) and issubclass(here, BaseModel) else None
        here = field.annotation if field else None
    return sorted(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []
