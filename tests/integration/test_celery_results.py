"""A real Celery: a worker in processes of its own, and results as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from braze_sends import BrazeSendsError
from braze_sends.testing import FakeBraze, Fault
from tests.servers import braze as emulator
from tests.servers import running
from tests.waiting import PATIENCE
from tests.world import KEY

pytestmark = pytest.mark.integration

#: The client is made where Celery's tasks are defined, before the worker forks.
APP = f"""
import os
from celery import Celery
from braze_sends.sync import SendsClient

app = Celery("tasks", broker="filesystem://", backend="file://" + os.path.abspath("results"))
app.conf.broker_transport_options = {{
    "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"
}}
app.conf.result_serializer = "json"
braze = SendsClient(
    {KEY!r}, timeout={PATIENCE}, max_retries=0, max_rate_limit_wait=0, store="sqlite:///quota.db"
)

@app.task
def create(send_id):
    return str(braze.create_send_id("campaign", send_id))
"""

#: Prints what became of each task: a send ID, or the error as the caller gets it.
CALLER = f"""
import json, sys
from tasks import create

for task in [create.delay(name) for name in sys.argv[1:]]:
    told = task.get(timeout={PATIENCE}, propagate=False)
    print(json.dumps(told if isinstance(told, str) else told.to_dict()))
"""


class Celery:
    """A worker, and who calls its tasks."""

    def __init__(self, folder: Path) -> None:
        for name in ("results", "queue", "control"):
            (folder / name).mkdir()
        (folder / "tasks.py").write_text(APP)
        self._folder = folder
        options = "worker --concurrency 2 --without-gossip --without-mingle --loglevel warning"
        self.worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tasks", *options.split()], cwd=folder
        )

    def create(self, *names: str) -> list[str | BrazeSendsError]:
        """Let the worker create; what the caller gets."""
        told = subprocess.run(
            [sys.executable, "-c", CALLER, *names],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            check=True,
        )
        results = [json.loads(line) for line in told.stdout.splitlines()]
        return [one if isinstance(one, str) else BrazeSendsError.from_dict(one) for one in results]


@pytest.fixture
def fake() -> Iterator[FakeBraze]:
    with running(fake := emulator(api_key=KEY)):
        yield fake


@pytest.fixture
def celery(fake: FakeBraze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    monkeypatch.setenv("BRAZE_BASE_URL", fake.base_url)
    celery = Celery(tmp_path)
    yield celery
    celery.worker.terminate()
    assert 0 == celery.worker.wait(PATIENCE)


def test_tasks_of_a_prefork_worker_share_a_quota(celery: Celery, fake: FakeBraze) -> None:
    """Send IDs come back, and the errors of those without quota say when to come back."""
    fake.daily_limit = 3
    results = celery.create(*(f"s{n}" for n in range(5)))
    errors = [one.to_dict() for one in results if isinstance(one, BrazeSendsError)]
    assert (3, 0) == (len(fake.created), fake.refused)
    assert ["QuotaExhaustedError"] * 2 == [error["error"] for error in errors]
    for error in errors:
        assert (3, 0, False) == (error["limit"], error["remaining"], error["quota_spent"])
        assert error["retry_after"] > 0
        assert error["resets_at"]


def test_a_call_of_unknown_outcome_stays_unknown(celery: Celery, fake: FakeBraze) -> None:
    """The caller learns that a slot may be gone, and under which name to ask again."""
    fake.script(Fault(drop="after"))
    (error,) = celery.create("lost")
    assert isinstance(error, BrazeSendsError)
    assert "APIConnectionError" == type(error).__name__
    assert (None, "campaign", "lost") == (error.quota_spent, error.campaign_id, error.send_id)
    assert ["lost"] == celery.create("lost")
    assert [("campaign", "lost")] == fake.created
