"""litefs.yml is read as LiteFS reads it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from litefs_celery import litefs_config


def write(folder: Path, text: str) -> Path:
    """Return the path of a litefs.yml with this text."""
    path = folder / "litefs.yml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_are_text_as_they_are_written(tmp_path: Path) -> None:
    """A host called "no" or "007" keeps its name; merge keys and JSON are YAML too."""
    text = "base: &b {hostname: 007}\nlease: {<<: *b, type: no, candidate: off}\n"
    found = litefs_config.read(write(tmp_path, text), {})
    assert (found.text("lease.hostname"), found.text("lease.type")) == ("007", "no")
    assert found.is_true("lease.candidate") is False
    assert found.strangers == ("base",)
    found = litefs_config.read(write(tmp_path, '{"lease": {"candidate": true}}'), {})
    assert found.is_true("lease.candidate") is True


def test_what_is_left_out_has_litefs_default(tmp_path: Path) -> None:
    """An empty file is LiteFS's defaults, with the host's own name."""
    found = litefs_config.read(write(tmp_path, "# nothing\n"), {})
    assert found.text("http.addr") == ":20202"
    assert found.text("data.dir") == "/var/lib/litefs"
    assert found.seconds("lease.consul.ttl") == 10
    assert found.is_true("lease.candidate") is True
    assert found.hostname() == socket.gethostname()


def test_variables_are_expanded_as_litefs_does(tmp_path: Path) -> None:
    """Names with and without braces, and comparisons; a comment's are no variables."""
    text = (
        "# $COMMENT\n"
        "lease:\n"
        "  hostname: $HOST\n"
        "  candidate: ${ REGION == 'ams' }\n"
        '  promote: ${REGION != "ams"}\n'
        "  type: ${KIND}\n"
        "data: {compress: ${REGION == HOME_REGION}}\n"
    )
    environ = {"HOST": "n1", "REGION": "ams", "HOME_REGION": "fra", "KIND": "consul"}
    found = litefs_config.read(write(tmp_path, text), environ)
    assert found.unset == ()
    assert found.hostname() == "n1"
    assert (found.is_true("lease.candidate"), found.is_true("lease.promote")) == (True, False)
    assert found.is_true("data.compress") is False
    assert found.text("lease.type") == "consul"


def test_what_hangs_on_a_variable_that_is_not_set_is_not_known(tmp_path: Path) -> None:
    """It is None and named, not empty; all else is read."""
    text = "lease: {type: consul, hostname: n-${NUMBER}, candidate: \"${REGION == 'a'}\"}\n"
    found = litefs_config.read(write(tmp_path, text), {})
    assert found.unset == ("NUMBER", "REGION")
    assert found.hostname() is None
    assert found.is_true("lease.candidate") is None
    assert found.text("lease.type") == "consul"


def test_fields_that_litefs_refuses_are_named(tmp_path: Path) -> None:
    """Misspelt sections and fields are found at each level, good ones are not."""
    text = (
        "fuse: {dir: /litefs, allow-other: true}\nhttpd: {addr: ':1'}\n"
        "exec: [{cmd: 'x'}]\nlease: {typ: consul, consul: {tll: 10s, ttl: 10s}}\n"
    )
    found = litefs_config.read(write(tmp_path, text), {})
    assert found.strangers == ("httpd", "lease.typ", "lease.consul.tll")


@pytest.mark.parametrize("text", ["[1, 2]", "lease: {", "just text"])
def test_another_file_is_told(tmp_path: Path, text: str) -> None:
    """What is no mapping in YAML is a ValueError with the path."""
    with pytest.raises(ValueError, match=r"litefs\.yml is no"):
        litefs_config.read(write(tmp_path, text), {})


def test_litefs_own_example_has_no_strangers() -> None:
    """The file of this project's containers is read without a complaint."""
    path = Path(__file__).resolve().parent.parent / "worker" / "litefs.yml"
    found = litefs_config.read(path, {"HOSTNAME": "node-a"})
    assert (found.strangers, found.unset, found.hostname()) == ((), (), "node-a")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("1m30s", 90), ("1.5h", 5400), ("2000ms", 2), ("300us", 0.0003), ("0", 0)],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    """Each of Go's units is known."""
    assert litefs_config.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["10", "", "ten", "10 s", "10s!", "-1s"])
def test_what_is_no_duration_is_told(text: str) -> None:
    """A number alone is none: LiteFS does not start with it."""
    with pytest.raises(ValueError, match="no duration"):
        litefs_config.duration(text)
