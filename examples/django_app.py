"""Django on ASGI, in one file. Four workers that share one quota:

    export BRAZE_SENDS_STORE=sqlite:///quota.db
    gunicorn django_app:app --workers 4 --worker-class asgi

BRAZE_API_KEY and BRAZE_BASE_URL name the workspace. For more than one host: redis://host/0.
"""

import os
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from braze_sends import BrazeSendsError, ConfigurationError, CreateSendId, SendsClient
from braze_sends.web import http_status, retry_after_header

settings.configure(ROOT_URLCONF=__name__, SECRET_KEY=os.urandom(16).hex(), ALLOWED_HOSTS=["*"])
django = get_asgi_application()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "lifespan":  # which Django does not know
        return await django(scope, receive, send)
    await receive()  # lifespan.startup
    # One client for each worker. It closes after the last request has been answered.
    async with SendsClient(max_rate_limit_wait=0) as braze:  # a visitor waits: rather an error
        scope["state"]["braze"] = braze
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
    return await send({"type": "lifespan.shutdown.complete"})


async def create(request: HttpRequest, campaign_id: str, send_id: str) -> JsonResponse:
    try:
        CreateSendId(campaign_id, send_id).check()
    except ConfigurationError as error:  # the visitor chose it
        return JsonResponse({"error": str(error)}, status=422)
    try:
        send = await request.scope["state"]["braze"].create_send_id(campaign_id, send_id)
    except BrazeSendsError as error:
        after = retry_after_header(error)
        return JsonResponse(
            {"error": str(error), "send_id": error.send_id, "quota_spent": error.quota_spent},
            status=http_status(error),
            headers={"Retry-After": after} if after else None,
        )
    return JsonResponse({"send_id": send.send_id}, status=201)


async def health(request: HttpRequest) -> JsonResponse:
    check = await request.scope["state"]["braze"].check()
    told = {"ok": check.ok, "remaining": check.quota and check.quota.remaining}
    return JsonResponse(told, status=200 if check.ok else 503)


urlpatterns = [path("sends/<campaign_id>/<send_id>", create), path("health", health)]
