"""FastAPI. Four workers that share one quota:

    export BRAZE_SENDS_STORE=sqlite:///quota.db
    uvicorn fastapi_app:app --workers 4 --timeout-graceful-shutdown 15

BRAZE_API_KEY and BRAZE_BASE_URL name the workspace. For more than one host: redis://host/0.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from braze_sends import BrazeSendsError, ConfigurationError, CreateSendId, SendsClient
from braze_sends.web import http_status, retry_after_header


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, SendsClient]]:
    # One client for each worker. It closes after the last request has been answered.
    async with SendsClient(max_rate_limit_wait=0) as braze:  # a visitor waits: rather an error
        yield {"braze": braze}


app = FastAPI(lifespan=lifespan)


@app.exception_handler(BrazeSendsError)
async def failed(request: Request, error: BrazeSendsError) -> JSONResponse:
    after = retry_after_header(error)
    return JSONResponse(
        {"error": str(error), "send_id": error.send_id, "quota_spent": error.quota_spent},
        http_status(error),
        {"Retry-After": after} if after else None,
    )


@app.post("/sends/{campaign_id}/{send_id}", status_code=201)
async def create(campaign_id: str, send_id: str, request: Request) -> dict[str, str]:
    try:
        CreateSendId(campaign_id, send_id).check()
    except ConfigurationError as error:  # the visitor chose it
        raise HTTPException(422, str(error)) from error
    send = await request.state.braze.create_send_id(campaign_id, send_id)
    return {"send_id": send.send_id}


@app.get("/health")
async def health(request: Request, response: Response) -> dict[str, object]:
    check = await request.state.braze.check()
    response.status_code = 200 if check.ok else 503
    return {"ok": check.ok, "remaining": check.quota and check.quota.remaining}
