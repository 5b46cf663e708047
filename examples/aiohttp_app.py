"""aiohttp.web. Four workers that share one quota:

    export BRAZE_SENDS_STORE=sqlite:///quota.db
    gunicorn aiohttp_app:make_app --workers 4 --worker-class aiohttp.GunicornWebWorker

BRAZE_API_KEY and BRAZE_BASE_URL name the workspace. For more than one host: redis://host/0.
"""

from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler

from braze_sends import BrazeSendsError, ConfigurationError, CreateSendId, SendsClient
from braze_sends.web import http_status, retry_after_header

BRAZE = web.AppKey("braze", SendsClient)


async def lifespan(app: web.Application) -> AsyncIterator[None]:
    # One client for each worker. It closes after the last request has been answered.
    async with SendsClient(max_rate_limit_wait=0) as app[BRAZE]:  # a visitor waits: rather an error
        yield


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except BrazeSendsError as error:
        after = retry_after_header(error)
        return web.json_response(
            {"error": str(error), "send_id": error.send_id, "quota_spent": error.quota_spent},
            status=http_status(error),
            headers={"Retry-After": after} if after else None,
        )


async def create(request: web.Request) -> web.Response:
    try:
        wanted = CreateSendId(**request.match_info).check()
    except ConfigurationError as error:  # the visitor chose it
        raise web.HTTPUnprocessableEntity(text=str(error)) from error
    send = await request.app[BRAZE].create_send_id(wanted.campaign_id, wanted.send_id)
    return web.json_response({"send_id": send.send_id}, status=201)


async def health(request: web.Request) -> web.Response:
    check = await request.app[BRAZE].check()
    told = {"ok": check.ok, "remaining": check.quota and check.quota.remaining}
    return web.json_response(told, status=200 if check.ok else 503)


async def make_app() -> web.Application:
    app = web.Application(middlewares=[errors])
    app.cleanup_ctx.append(lifespan)
    app.router.add_post("/sends/{campaign_id}/{send_id}", create)
    app.router.add_get("/health", health)
    return app
