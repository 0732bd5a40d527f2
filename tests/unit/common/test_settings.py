import json
import secrets
from pathlib import Path

import pytest
from jobcluster_common.certificates import key_pem, make_key
from jobcluster_common.settings import (
    Address,
    AnyPath,
    Block,
    ControllerBlock,
    GrpcServerBlock,
    LogBlock,
    SettingsError,
    Size,
    fail_with_one_line,
    is_loopback,
    load,
    parse_size,
)
from pydantic import Field


class StoreBlock(Block):
    path: AnyPath = Path("store.db")
    cache: Size = 1024
    retries: int = 3
    share: float = 1.0


class Settings(Block):
    grpc_server: GrpcServerBlock = GrpcServerBlock(addr="127.0.0.1:0")
    controller: ControllerBlock = ControllerBlock()
    store: StoreBlock = StoreBlock()
    log: LogBlock = LogBlock()
    labels: dict[str, str] = Field(default_factory=dict)


class Needs(Block):
    class Inner(Block):
        addr: Address

    http_server: Inner


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "worker.toml"


def fault(file: Path | None, environ: dict[str, str] | None = None, model: type[Block] = Settings) -> str:
    with pytest.raises(SettingsError) as caught:
        load(model, file, environ or {})
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_without_a_file_the_defaults_hold() -> None:
    assert load(Settings, None, {}).controller.addr == "127.0.0.1:7443"


def test_a_file_is_read_and_its_relative_names_are_relative_to_it(file: Path) -> None:
    file.write_text('[store]\npath = "data/x.db"\ncache = "2MiB"\n[labels]\nDisk = "ssd"\n')
    settings = load(Settings, file, {})
    assert settings.store.path == file.parent / "data/x.db"
    assert settings.store.cache == 2 << 20
    assert settings.labels == {"Disk": "ssd"}


def test_default_paths_are_relative_to_the_file_too(file: Path) -> None:
    file.write_text("[store]\nretries = 1\n")
    assert load(Settings, file, {}).store.path == file.parent / "store.db"


def test_the_seeds_key_address_is_an_alias_of_addr(file: Path) -> None:
    file.write_text('[controller]\naddress = "c:1"\n')
    assert load(Settings, file, {}).controller.addr == "c:1"
    for name in ("ADDR", "ADDRESS"):
        assert load(Settings, file, {f"JOBCLUSTER_CONTROLLER__{name}": "d:2"}).controller.addr == "d:2"


def test_a_variable_with_a_double_underscore_wins_over_the_file(file: Path) -> None:
    file.write_text("[store]\nretries = 1\n")
    environ = {
        "JOBCLUSTER_STORE__RETRIES": "7",
        "JOBCLUSTER_STORE__SHARE": "2",
        "JOBCLUSTER_STORE__CACHE": "1K",
        "JOBCLUSTER_LABELS__zone": "1",
        "JOBCLUSTER_GRPC_SERVER__USE_TLS": "false",
    }
    settings = load(Settings, file, environ)
    assert (settings.store.retries, settings.store.share, settings.store.cache) == (7, 2.0, 1024)
    assert settings.labels == {"zone": "1"}
    assert settings.grpc_server.use_tls is False
    assert settings.grpc_server.addr == "127.0.0.1:0"


def test_other_variables_are_not_configuration(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    file.write_text("")
    for name in ("JOBCLUSTER_URL", "JOBCLUSTER_WORKER_PORT_7444_TCP", "JOBCLUSTER_STORE__RETRIES"):
        monkeypatch.setenv(name, "9")
    assert load(Settings, file, {"JOBCLUSTER_URL": "x", "OTHER__KEY": "1"}).store.retries == 3


def test_an_unknown_key_is_named_with_the_known_ones(file: Path) -> None:
    file.write_text("[store]\npth = 1\n")
    assert (
        fault(file)
        == f"{file}: store.pth: unknown key; remove it, or use one of: cache, path, retries, share"
    )


def test_an_unknown_block_is_named(file: Path) -> None:
    file.write_text("[stor]\nx = 1\n")
    assert "stor: unknown key" in fault(file)


def test_a_wrong_type_is_named_and_nothing_is_guessed(file: Path) -> None:
    file.write_text('[grpc_server]\naddr = "127.0.0.1:0"\nuse_tls = "yes"\n')
    assert fault(file).startswith(f"{file}: grpc_server.use_tls: ")
    file.write_text("[store]\npath = 5\n")
    assert "store.path" in fault(file)


def test_a_fault_in_a_variable_names_the_variable(file: Path) -> None:
    file.write_text("")
    assert fault(file, {"JOBCLUSTER_STORE__RETRIES": "many"}).startswith(
        "JOBCLUSTER_STORE__RETRIES: store.retries: "
    )
    assert fault(file, {"JOBCLUSTER_STORE__X": "1"}).startswith("JOBCLUSTER_STORE__X: store.x: unknown key")


def test_a_wrong_type_says_which_type_is_meant(file: Path) -> None:
    file.write_text("[controller]\naddr = 5\n")
    assert fault(file) == f"{file}: controller.addr: must be a string, not 5; correct it"
    file.write_text('[grpc_server]\naddr = "127.0.0.1:0"\nuse_tls = "no"\n')
    assert fault(file) == f"{file}: grpc_server.use_tls: must be a boolean, not 'no'; correct it"


def test_a_missing_key_says_where_to_put_it(file: Path) -> None:
    file.write_text("[http_server]\n")
    line = fault(file, model=Needs)
    assert line == f"{file}: http_server.addr: missing; add it there, or set JOBCLUSTER_HTTP_SERVER__ADDR"


@pytest.mark.parametrize(
    "secret", [secrets.token_urlsafe(32), key_pem(make_key()).decode()], ids=["token", "key"]
)
def test_a_secret_in_place_of_its_files_name_is_refused_and_not_shown(file: Path, secret: str) -> None:
    file.write_text(f'[grpc_server]\naddr = "127.0.0.1:0"\nca_file = {json.dumps(secret)}\n')
    line = fault(file)
    assert line.startswith(f"{file}: grpc_server.ca_file: must name the file that holds it")
    assert not any(part in line for part in secret.split("\n") if len(part) > 20)


def test_a_missing_file_named_by_a_key_is_refused_at_start(file: Path) -> None:
    file.write_text('[grpc_server]\naddr = "127.0.0.1:0"\nca_file = "ca.crt"\n')
    line = fault(file)
    assert (
        line == f"{file}: grpc_server.ca_file: no such file: {file.parent}/ca.crt; make it, or name another"
    )


def test_a_missing_or_broken_settings_file_is_one_line(file: Path) -> None:
    assert fault(file).startswith(f"{file}: cannot be read: No such file or directory")
    file.write_text("[store\n")
    assert fault(file).startswith(f"{file}: not TOML: ")
    file.write_bytes(b"\xff")
    assert fault(file).startswith(f"{file}: cannot be read: not UTF-8")


def test_plain_text_is_refused_beyond_loopback(file: Path) -> None:
    file.write_text('[grpc_server]\naddr = "0.0.0.0:7443"\nuse_tls = false\n')
    assert "use_tls = false is for loopback only" in fault(file)


@pytest.mark.parametrize("addr", ["", "x", "host:", "host:65536", ":1", "::1:5", "a b:1"])
def test_a_bad_address_is_refused_with_its_form(file: Path, addr: str) -> None:
    file.write_text(f'[controller]\naddr = "{addr}"\n')
    assert "host:port" in fault(file)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (5, 5),
        ("5", 5),
        ("5B", 5),
        ("1K", 1024),
        ("1KiB", 1024),
        ("1kb", 1024),
        ("256MiB", 256 << 20),
        ("1.5G", 3 << 29),
        ("2 TiB", 2 << 40),
    ],
)
def test_sizes_are_understood(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", [-1, True, "", "M", "1X", "1MM", "-1", "1e3", "٣", "nan"])
def test_other_sizes_are_refused_with_the_form(text: int | str) -> None:
    with pytest.raises(ValueError, match="a size is a number"):
        parse_size(text)


def test_loopback_is_told_from_the_rest() -> None:
    assert [is_loopback(a) for a in ("127.0.0.1:1", "[::1]:1", "localhost:1")] == [True] * 3
    assert [is_loopback(a) for a in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.evil:1")] == [False] * 4


def test_main_fails_with_one_line_and_code_2(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    @fail_with_one_line
    def main() -> int:
        load(Settings, file, {})
        return 0

    assert main() == 2
    assert capsys.readouterr().err.count("\n") == 1
