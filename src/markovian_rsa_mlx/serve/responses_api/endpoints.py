"""`/v1/responses`: create a response, read it again, and delete it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...errors import MarkovianRSAError
from ..completions import answer
from ..errors import RequestError
from ..plan import Plan
from ..request import parse, read_object
from ..run_manager import ActiveRun, RunManager
from ..translation import renamed
from .output import DeletedResponse, ResponseForm
from .request import KEYS, ResponsesRequest, chat_messages, chat_request
from .store import ResponseStore


async def create_response(request: Request) -> Response:
    """Answer a text or a conversation, with Markovian RSA if the model's name or the body asks for it."""
    manager: RunManager = request.app.state.manager
    body = parse(await read_object(request, manager.settings.max_body_bytes), ResponsesRequest)
    manager.check_tolerance(body)
    store: ResponseStore = request.app.state.responses
    earlier: tuple[dict[str, Any], ...] = ()
    if body.previous_response_id is not None:
        earlier = store.conversation(body.previous_response_id, "previous_response_id")
    messages = [*earlier, *chat_messages(body, store.item)]

    def form_of(plan: Plan, run: ActiveRun) -> ResponseForm:
        return ResponseForm(body, plan, lambda response, message: store.add(response, [*messages, message]))

    try:
        return await answer(request, chat_request(body, messages), form_of)
    except (RequestError, MarkovianRSAError) as error:
        raise renamed(error, KEYS) from error


async def get_response(request: Request) -> Response:
    """Return a response that is kept."""
    store: ResponseStore = request.app.state.responses
    return JSONResponse(store.get(request.path_params["response_id"]).response)


async def delete_response(request: Request) -> Response:
    """Forget a response."""
    store: ResponseStore = request.app.state.responses
    response_id: str = request.path_params["response_id"]
    store.remove(response_id)
    return JSONResponse(DeletedResponse(id=response_id, object="response", deleted=True).to_json())
