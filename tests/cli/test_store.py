"""``braze-sends store``, on a real database."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Run
from tests.servers import free_port


def test_migrate_makes_the_tables(run: Run, blank_url: str) -> None:
    """A store without tables cannot be used before, and can after; to migrate again is no harm."""
    before = run("quota", "--store", blank_url)
    assert 1 == before.exit_code
    assert "run braze-sends store migrate" in before.stderr

    for _ in range(2):
        result = run("store", "migrate", "--store", blank_url)
        assert (0, "") == (result.exit_code, result.stderr)
        assert "The tables have version 1 and are up to date.\n" == result.stdout

    assert 0 == run("create", "c", "--store", blank_url).exit_code


def test_migrate_takes_the_store_from_the_environment(run: Run, blank_url: str) -> None:
    """As the other commands do, so that a password need not be an argument."""
    result = run("store", "migrate", env={"BRAZE_SENDS_STORE": blank_url})
    assert 0 == result.exit_code


@pytest.mark.parametrize("store", ["memory://", "sqlite:///quota.db"])
def test_other_stores_need_no_tables(run: Run, store: str) -> None:
    """That is no error, so that a script can migrate whatever store there is."""
    result = run("store", "migrate", "--store", store)
    assert (0, "Nothing to do: this store needs no tables.\n") == (result.exit_code, result.stdout)


def test_a_database_that_cannot_be_reached_is_told(run: Run) -> None:
    """Without its password."""
    url = f"postgresql://user:sesame@127.0.0.1:{free_port()}/db"
    result = run("store", "migrate", "--store", url)
    assert 1 == result.exit_code
    assert "error: postgresql://127.0.0.1:" in result.stderr
    assert "sesame" not in result.output


def test_migrate_needs_a_store(run: Run) -> None:
    """Without one, and with one that cannot be, the command is used wrongly."""
    assert 2 == run("store", "migrate").exit_code
    assert 2 == run("store", "migrate", "--store", "postgresql+asyncpg://h/d").exit_code
