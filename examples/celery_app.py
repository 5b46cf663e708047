"""Celery. Four processes that share one quota; what the day has no room for waits for the next:

    export BRAZE_SENDS_STORE=sqlite:///quota.db
    celery -A celery_app worker --concurrency 4

BRAZE_API_KEY and BRAZE_BASE_URL name the workspace. For more than one host: redis://host/0. From
anywhere: ``celery_app.create.delay("campaign-id", "story-7")``.
"""

import functools
import os

from celery import Celery, Task

from braze_sends import (
    APIConnectionError,
    InternalServerError,
    QuotaExhaustedError,
    RateLimitError,
    StoreError,
)
from braze_sends.sync import SendsClient

BROKER = os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/1")

app = Celery("sends", broker=BROKER, backend=BROKER)
app.conf.task_acks_late = True  # a task of a killed worker comes back; its name makes that harmless
app.conf.task_reject_on_worker_lost = True
app.conf.worker_prefetch_multiplier = 1
# Redis hands out once more what was not acknowledged within an hour.
LONGEST_WAIT = 1800
PASSING = (APIConnectionError, InternalServerError, RateLimitError, StoreError)


@functools.cache
def client() -> SendsClient:
    """One for each process, made by its first task. It is closed when the process exits."""
    return SendsClient(max_rate_limit_wait=0)


@app.task(bind=True, max_retries=None)
def create(self: Task, campaign_id: str, send_id: str) -> str:
    """Name each send, so that a task that runs twice creates one."""
    try:
        return str(client().create_send_id(campaign_id, send_id))
    except QuotaExhaustedError as error:
        raise self.retry(exc=error, countdown=min(error.retry_after or 60, LONGEST_WAIT)) from error
    except PASSING as error:
        raise self.retry(exc=error, countdown=60) from error


@app.task
def health() -> dict[str, object]:
    """Through the broker, a worker and the store."""
    check = client().check()
    return {"ok": check.ok, "remaining": check.quota and check.quota.remaining}
