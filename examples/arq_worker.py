"""arq. Any number of workers that share one quota; what the day has no room for waits for the next:

    export BRAZE_SENDS_STORE=redis://localhost:6379/0
    arq arq_worker.WorkerSettings

BRAZE_API_KEY and BRAZE_BASE_URL name the workspace; sqlite:///quota.db is enough for one host.
``arq --check arq_worker.WorkerSettings`` tells whether a worker lives.
"""

import os
from datetime import timedelta
from typing import Any

from arq import ArqRedis, Retry, func
from arq.connections import RedisSettings

from braze_sends import (
    APIConnectionError,
    InternalServerError,
    QuotaExhaustedError,
    RateLimitError,
    SendsClient,
    StoreError,
)

REDIS = RedisSettings.from_dsn(os.environ.get("ARQ_REDIS_URL", "redis://localhost:6379/1"))
PASSING = (APIConnectionError, InternalServerError, RateLimitError, StoreError)


async def startup(ctx: dict[str, Any]) -> None:
    ctx["braze"] = SendsClient(max_rate_limit_wait=0)  # one for each worker


async def shutdown(ctx: dict[str, Any]) -> None:
    await ctx["braze"].close()


async def create(ctx: dict[str, Any], campaign_id: str, send_id: str) -> str:
    """Name each send, so that a job that runs twice creates one."""
    try:
        return str(await ctx["braze"].create_send_id(campaign_id, send_id))
    except QuotaExhaustedError as error:
        raise Retry(defer=error.retry_after or 60) from error  # when the window has ended
    except PASSING as error:
        raise Retry(defer=60) from error


async def health(ctx: dict[str, Any]) -> dict[str, object]:
    """Through Redis, a worker and the store."""
    check = await ctx["braze"].check()
    return {"ok": check.ok, "remaining": check.quota and check.quota.remaining}


async def enqueue(pool: ArqRedis, campaign_id: str, send_id: str) -> None:
    """Keep the job for a week: arq drops one that has not begun within a day."""
    expires = timedelta(days=7)
    await pool.enqueue_job("create", campaign_id, send_id, _job_id=send_id, _expires=expires)


class WorkerSettings:
    redis_settings = REDIS
    functions = (func(create, max_tries=10_000), health)  # a wait for quota counts as a try
    on_startup, on_shutdown = startup, shutdown
    job_completion_wait = 15  # seconds that SIGTERM leaves to jobs under way; more than one attempt
