"""`/v1/messages`: continue a chat with a message, and count the tokens of a chat."""

from __future__ import annotations

import asyncio
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...errors import MarkovianRSAError
from ..completions import answer, prepare_plan, until_disconnect
from ..errors import RequestError
from ..request import parse, read_object
from ..run_manager import RunManager
from ..translation import renamed
from .output import MessageForm, TokenCount
from .request import KEYS, CountTokensRequest, MessagesRequest, chat_request, counting_request


async def create_message(request: Request) -> Response:
    """Continue a chat with a message, with Markovian RSA if the model's name or the body asks for it."""
    manager: RunManager = request.app.state.manager
    body = parse(await read_object(request, manager.settings.max_body_bytes), MessagesRequest)
    manager.check_tolerance(body)
    try:
        # The protocol requires max_tokens, and clients send the largest value that their usual models allow.
        form_of = partial(MessageForm, body)
        return await answer(request, chat_request(body), form_of, lower_max_tokens=True)
    except (RequestError, MarkovianRSAError) as error:
        raise renamed(error, KEYS) from error


async def count_message_tokens(request: Request) -> Response:
    """Count the tokens of a chat in the model's template, as a completion would have them as its prompt."""
    manager: RunManager = request.app.state.manager
    body = parse(await read_object(request, manager.settings.max_body_bytes), CountTokensRequest)
    manager.check_tolerance(body)
    try:
        plan = await prepare_plan(request, counting_request(body))
        count = await until_disconnect(request, asyncio.ensure_future(manager.prepare(manager.prompt_tokens, plan)))
    except (RequestError, MarkovianRSAError) as error:
        raise renamed(error, KEYS) from error
    return JSONResponse(TokenCount(input_tokens=count).to_json())
