"""Litestar. Four workers that share one quota:

    export BRAZE_SENDS_STORE=sqlite:///quota.db
    uvicorn litestar_app:app --workers 4 --timeout-graceful-shutdown 15

BRAZE_API_KEY and BRAZE_BASE_URL name the workspace. For more than one host: redis://host/0.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response, get, post
from litestar.datastructures import State
from litestar.exceptions import ClientException

from braze_sends import BrazeSendsError, ConfigurationError, CreateSendId, SendsClient
from braze_sends.web import http_status, retry_after_header


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    # One client for each worker. It closes after the last request has been answered.
    async with SendsClient(max_rate_limit_wait=0) as braze:  # a visitor waits: rather an error
        app.state.braze = braze
        yield


def failed(request: Request[Any, Any, Any], error: BrazeSendsError) -> Response[dict[str, Any]]:
    after = retry_after_header(error)
    return Response(
        {"error": str(error), "send_id": error.send_id, "quota_spent": error.quota_spent},
        status_code=http_status(error),
        headers={"Retry-After": after} if after else None,
    )


@post("/sends/{campaign_id:str}/{send_id:str}")
async def create(campaign_id: str, send_id: str, state: State) -> dict[str, str]:
    try:
        CreateSendId(campaign_id, send_id).check()
    except ConfigurationError as error:  # the visitor chose it
        raise ClientException(str(error), status_code=422) from error
    send = await state.braze.create_send_id(campaign_id, send_id)
    return {"send_id": send.send_id}


@get("/health")
async def health(state: State) -> Response[dict[str, object]]:
    check = await state.braze.check()
    told = {"ok": check.ok, "remaining": check.quota and check.quota.remaining}
    return Response(told, status_code=200 if check.ok else 503)


app = Litestar([create, health], lifespan=[lifespan], exception_handlers={BrazeSendsError: failed})
