"""Settings: each is read from one place, and all that is wrong is told at once."""

from __future__ import annotations

import dataclasses

import pytest

from litefs_celery import ConfigurationError, Settings


def load(conf: dict | None = None, **environ: str) -> Settings:
    """Load with ``LITEFS_CELERY_`` put before each variable."""
    named = {f"LITEFS_CELERY_{name}": value for name, value in environ.items()}
    return Settings.load({"litefs_node": "n1"} | (conf or {}), named)


def test_defaults_are_valid() -> None:
    """Without any setting the defaults hold and have no problems."""
    settings = load()
    assert settings == Settings(node="n1")
    assert settings.problems() == []


def test_environment_goes_before_celery() -> None:
    """A variable of the environment beats Celery's configuration, an empty one does not."""
    conf = {"litefs_region": "ams", "litefs_write_timeout": 4}
    assert load(conf, REGION="fra").region == "fra"
    assert load(conf, REGION="").region == "ams"
    assert load(conf).write_timeout == 4.0


@pytest.mark.parametrize(
    ("option", "raw", "value"),
    [
        ("WRITE_TIMEOUT", "2.5", 2.5),
        ("GROUP_LIMIT", "7", 7),
        ("SOURCES", " info , table ", ("info", "table")),
        ("SOURCES", "events", ("events",)),
        ("API_URL", "https://litefs:1", "https://litefs:1"),
    ],
)
def test_text_becomes_the_options_type(option: str, raw: str, value: object) -> None:
    """What the environment holds as text arrives with the setting's own type."""
    assert getattr(load(**{option: raw}), option.lower()) == value


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"node": "a b"}, "litefs_node='a b'"),
        ({"node": ""}, "litefs_node=''"),
        ({"node": "-a"}, "litefs_node='-a'"),
        ({"node": "a" * 101}, "litefs_node="),
        ({"mode": "LiteFS"}, "litefs_mode='LiteFS'"),
        ({"sources": ("info", "gossip")}, "litefs_sources="),
        ({"sources": ()}, "cannot prove"),
        ({"sources": ("file", "table")}, "cannot prove"),
        ({"api_url": "localhost:20202"}, "litefs_api_url="),
        ({"primary_region": "ams"}, "litefs_region is not"),
        ({"primary_region": "a", "region": "a", "fixed_primary": "b"}, "exclude each other"),
        ({"write_timeout": 0.0}, "litefs_write_timeout=0.0"),
        ({"write_timeout": float("nan")}, "litefs_write_timeout=nan"),
        ({"group_limit": -1}, "litefs_group_limit=-1"),
        ({"max_payload_bytes": 0}, "litefs_max_payload_bytes=0"),
    ],
)
def test_each_problem_names_its_setting(values: dict, told: str) -> None:
    """A wrong value is one problem, which names the setting."""
    (problem,) = Settings(**({"node": "n1"} | values)).problems()
    assert told in problem


def test_all_problems_at_once() -> None:
    """One error names every problem: misspelt variables, wrong types and wrong values."""
    with pytest.raises(ConfigurationError) as caught:
        load({"litefs_mode": "x"}, WRITE_TIMEOUT="soon", GROUP_LIMIT="1.5", WRITE_TIMOUT="1")
    told = str(caught.value).splitlines()
    assert len(told) == 4
    for name in ("litefs_mode", "WRITE_TIMEOUT='soon'", "GROUP_LIMIT='1.5'", "WRITE_TIMOUT is"):
        assert any(name in line for line in told), name


@pytest.mark.parametrize(
    "values",
    [{"fixed_primary": "n1"}, {"primary_region": "ams", "region": "ams"}],
)
def test_a_fixed_role_needs_no_source(values: dict) -> None:
    """With a fixed role the sources need not be able to prove one."""
    settings = Settings(node="n1", sources=("file",), **values)
    assert settings.problems() == []
    assert settings.has_fixed_role


def test_read_queue_is_the_nodes_own() -> None:
    """The read queue is the prefix and the node's name."""
    assert Settings(node="n1", read_queue_prefix="r-").read_queue == "r-n1"


def test_settings_are_frozen() -> None:
    """Settings cannot change under the parts that hold them."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings(node="n1").node = "n2"  # type: ignore[misc]
