"""Tokenizers for upstream engines: the one of llama.cpp's server, the one in a GGUF file, or that of a model folder."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import ModelError, PromptError, UpstreamError
from ...marks import TABLE, ThinkingMarks, find_marks
from ...tokenizer import ChatMessage, Tokenizer, thinking_switches
from ..chat_template import render
from ..tokenizers import is_mark, marked_ids
from .config import Upstream
from .dialects import token_bytes, token_ids
from .errors import ProtocolError, TransientError, UnsupportedRequest, WrongTokenizer
from .transport import HTTPClient

#: Names of tokens at which llama.cpp ends a generation.
EOS_NAMES = (
    "<|eot_id|>", "<|im_end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>",
)  # fmt: skip
#: The parts of thinking marks that may be tokens of their own.
PARTS = {part for row in TABLE for part in row.parts}
#: Digits, several scripts and unusual spacing distinguish tokenizers.
TEST_TEXT = "Say  yes: 12345 + 0.5 = ?\n\tça va, 你好 🙂"
#: Chats whose frames show the marks of turns. Some templates refuse more than the first message.
CHATS = (
    (("user", "first question"),),
    (("user", "first question"), ("assistant", "first answer"), ("user", "second question")),
    (("system", "instruction"), ("user", "first question")),
)
_MARKS = re.compile(r"<[^<>\s'\"]{1,40}>|\[/?[A-Z_]{2,20}\]")
#: Seconds: the limit of a call, and the first and the longest pause before it is retried.
_CALL_S, _FIRST_PAUSE_S, _MAX_PAUSE_S = 10.0, 0.1, 1.0
#: Seconds for which calls on an event loop's thread are retried. They block the event loop.
_EVENT_LOOP_TIMEOUT_S = 5.0
_CACHE_SIZE = 1_024
#: Bounds of a reply: without, and per character or token of the request.
_MAX_REPLY_BYTES, _MAX_BYTES_PER_ITEM = 2**20, 1_024


def choose_tokenizer(
    upstream: Upstream, model: str, *, client: HTTPClient, props: dict[str, Any], sources: Sequence[str] = ()
) -> Tokenizer:
    """Return the configured tokenizer, or that of the model's folder or hub id, or the one that the server offers.

    `props` is the document of llama.cpp's server, and {} for other servers. `sources` are folders and hub ids that the
    server names. A local tokenizer must make the server's ids of a test text, if the server can be asked for them.
    Raises `ModelError` if there is no tokenizer.
    """
    if upstream.tokenizer is not None:
        tokenizer = local_tokenizer(upstream.tokenizer)
        if not _agrees(tokenizer, client, model, is_llama_cpp=bool(props)):
            raise WrongTokenizer(
                f"The tokenizer of {upstream.tokenizer!r} makes other tokens of a test text than {client.url}. Name "
                "the model's own tokenizer with --tokenizer."
            )
        return tokenizer
    if props:
        return RemoteTokenizer(client, model, props)
    failures: list[str] = []
    for name in dict.fromkeys([*sources, model]):
        is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
        if not is_hub_id and not _is_model_folder(name):
            continue
        try:
            tokenizer = local_tokenizer(name)
        except ModelError as error:
            failures.append(str(error).rstrip("."))
            continue
        if _agrees(tokenizer, client, model):
            return tokenizer
        failures.append(f"the tokenizer of {name!r} is not the server's")
    try:
        from .vllm_tokenizer import VLLMTokenizer

        return VLLMTokenizer(client, model)
    except ModelError as error:
        cause = "; ".join([*failures, str(error).rstrip(".")])
        raise ModelError(
            f"No tokenizer is known for the model {model!r} of {client.url} ({cause}). Name the model's folder or hub "
            "id with --tokenizer."
        ) from error


def _is_model_folder(name: str) -> bool:
    try:
        return (Path(name) / "config.json").is_file()
    except (OSError, ValueError):  # a name that no file can have, or a folder that is not the user's
        return False


def _agrees(tokenizer: Tokenizer, client: HTTPClient, model: str, *, is_llama_cpp: bool = False) -> bool:
    """Return False if the server makes other ids of a test text than `tokenizer`."""
    body = {"model": model, "prompt": TEST_TEXT, "add_special_tokens": False}
    if is_llama_cpp:
        body = {"model": model, "content": TEST_TEXT}
    try:
        answer = client.fetch_blocking(f"{client.root}/tokenize", body, _CALL_S, _MAX_REPLY_BYTES)
    except (TransientError, UnsupportedRequest, UpstreamError):
        return True
    ids = answer.get("tokens") if isinstance(answer, dict) else None
    return not ids or ids == tokenizer.encode(TEST_TEXT)


def local_tokenizer(name: str) -> Tokenizer:
    """Load the tokenizer of a GGUF file, a folder or a hub id. Raises `ModelError`."""
    if name.endswith(".gguf"):
        return GGUFTokenizer(Path(name).expanduser())
    from ..tokenizers import load_tokenizer

    return load_tokenizer(name)


class RemoteTokenizer:
    """A `Tokenizer` over `/tokenize`, `/detokenize` and `/apply-template` of llama.cpp's server.

    Calls block, so they are avoided: results are cached, and the bytes of tokens are kept from encoded texts
    (`encode`) and of generated ids (`prefetch`).

    `model` is named in all calls; a server of one model ignores it. `props` is the server's `/props`. Any server of the
    model can answer (`add_server`). Raises `UpstreamError` if none does for `unreachable_timeout_s`, or for 5 s on the
    thread of an event loop.
    """

    def __init__(self, client: HTTPClient, model: str, props: dict[str, Any]) -> None:
        self._client, self._model = client, model
        self._roots: tuple[str, ...] = (client.root,)
        self._timeout_s = client.times.unreachable_timeout_s
        self._bytes: dict[int, bytes] = {}
        self._encoded = functools.lru_cache(_CACHE_SIZE)(self._tokenize)
        self._decoded = functools.lru_cache(_CACHE_SIZE)(
            lambda ids: self._text_of(self._call("/detokenize", self._detokenize_body(ids)))
        )
        self._rendered = functools.lru_cache(_CACHE_SIZE)(self._apply_template)
        # Words are ordinary tokens.
        self._named_tokens = functools.lru_cache(8)(
            lambda begin, end: self._find_marks_among(
                {part for part in ThinkingMarks(begin, end, wrappers=()).parts if not part[0].isalnum()}
            )
        )
        template, eos, special = self._read_facts(props)
        self.eos_ids = self._find_eos_ids(eos, special)
        self.template, self._special = template, special
        self.end_of_thinking, self.closing_ids, self.control_ids = marked_ids(
            self.find_marks(), self.encode, special.values()
        )
        self.reserved = dict(special)

    def _find_eos_ids(self, eos: str, special: dict[str, int]) -> frozenset[int]:
        return frozenset(special[mark] for mark in (eos, *EOS_NAMES) if mark in special)

    def _read_facts(self, props: dict[str, Any]) -> tuple[str, str, dict[str, int]]:
        """Return the chat template, the EOS mark, and the special tokens by their texts."""
        template = str(props.get("chat_template", ""))
        adds_bos = len(self._tokenize("a", add_special=True)) > len(self._tokenize("a"))
        self._bos = str(props.get("bos_token", "")) if adds_bos else ""
        eos = str(props.get("eos_token", ""))
        # One call shows which marks of the table are tokens.
        known = {self._bytes.get(token, b"").decode(errors="replace") for token in self._tokenize("\n".join(PARTS))}
        names = {*_MARKS.findall(template), *EOS_NAMES, eos, self._bos, *known & PARTS} - {""}
        special = self._find_marks_among(names)
        for chat in CHATS:
            with contextlib.suppress(PromptError):
                special |= self._special_tokens_of(self._apply_template(chat, True))
        return template, eos, special

    def reserve_tokens_of(self, text: str) -> None:
        """Add the special tokens and the marks that the server would make of a text to `reserved`."""
        words = set(_MARKS.findall(text)) - self.reserved.keys()
        marks = {word for word in words if word in PARTS or is_mark(word, self.template)}
        # The server makes tokens of some marks even where it parses no special tokens.
        lines = self._encoded("\n".join(sorted(marks)), parse_special=False)
        self.reserved |= {mark: token for mark, token in self._texts_of(lines).items() if mark in marks}
        self.reserved |= self._special_tokens_of(text)

    def _special_tokens_of(self, text: str) -> dict[str, int]:
        """Return the tokens that only parsing for special tokens makes of a text."""
        special = set(self._encoded(text)) - set(self._encoded(text, parse_special=False))
        return self._find_marks_among(set(self._texts_of(special)))

    def _texts_of(self, ids: Collection[int]) -> dict[str, int]:
        """Return the ids by their texts."""
        texts = {(self._bytes[i].decode(errors="replace") if i in self._bytes else self._decoded((i,))): i for i in ids}
        return {text: token for text, token in texts.items() if text}

    def _find_marks_among(self, names: set[str]) -> dict[str, int]:
        """Return the ids of the names that are tokens of their own."""
        encoded = {name: self._encoded(name) for name in names}
        return {
            name: ids[0]
            for name, ids in encoded.items()
            if len(ids) == 1 and ids != self._encoded(name, parse_special=False)  # otherwise it is ordinary text
        }

    def find_marks(self, named: Sequence[str] | None = None) -> ThinkingMarks | None:
        """Return the marks around the model's thinking: the ones that a user named, or those of its template."""
        tokens = self._special | (self._named_tokens(*named) if named else {})
        return find_marks(self.template, tokens.get, named)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without adding special tokens. Marks in the text become their ids."""
        return list(self._encoded(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without control ids. Incomplete characters become U+FFFD."""
        kept = tuple(token for token in ids if token not in self.control_ids)
        if any(token not in self._bytes for token in kept):
            return self._decoded(kept)
        return b"".join(self._bytes[token] for token in kept).decode("utf-8", "replace")

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        """Return the chat in the model's template, with the BOS that the server would add."""
        return self._rendered(tuple((m["role"], m["content"]) for m in messages), enable_thinking)

    def add_server(self, root: str) -> None:
        """Add a server of the same model, to call if the others do not answer."""
        if root not in self._roots:
            self._roots = (*self._roots, root)

    async def prefetch(self, client: HTTPClient, ids: Sequence[int], known: Mapping[int, bytes]) -> None:
        """Get the bytes that `decode` needs of `ids` without blocking. `known` are those that a reply has.

        Raises `TransientError`.
        """
        self._bytes.update(known)
        unknown = [token for token in dict.fromkeys(ids) if token not in self._bytes and token not in self.control_ids]
        if not unknown:
            return
        try:
            text = self._text_of(await client.fetch(f"{client.root}/detokenize", self._detokenize_body(ids)))
            self._keep_pieces(await client.fetch(f"{client.root}/tokenize", self._tokenize_body(text)))
            for token in unknown:
                if token not in self._bytes:
                    body = self._detokenize_body([token])
                    text = self._text_of(await client.fetch(f"{client.root}/detokenize", body))
                    if "\ufffd" not in text:
                        self._bytes[token] = text.encode()
        except UnsupportedRequest:
            return  # `decode` raises the error

    def _tokenize(self, text: str, *, parse_special: bool = True, add_special: bool = False) -> tuple[int, ...]:
        if not text:
            return ()
        body = self._tokenize_body(text) | {"parse_special": parse_special, "add_special": add_special}
        return self._keep_pieces(self._call("/tokenize", body))

    def _tokenize_body(self, text: str) -> dict[str, Any]:
        return {"model": self._model, "content": text, "parse_special": True, "with_pieces": True}

    def _detokenize_body(self, ids: Sequence[int]) -> dict[str, Any]:
        return {"model": self._model, "tokens": list(ids)}

    def _text_of(self, answer: Any) -> str:
        """Return the text in an answer of `/detokenize`."""
        text = answer.get("content") if isinstance(answer, dict) else None
        if not isinstance(text, str):
            raise ProtocolError("the server's tokenizer returned no text")
        return text

    def _apply_template(self, messages: tuple[tuple[str, str], ...], enable_thinking: bool) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        switches = thinking_switches(enable_thinking)
        body = {"model": self._model, "messages": chat, "chat_template_kwargs": switches}
        try:
            text = str(self._call("/apply-template", body)["prompt"])
        except UnsupportedRequest as error:
            raise PromptError(f"The model's chat template refuses this chat: {error}.") from error
        return text if text.startswith(self._bos) else self._bos + text

    def _keep_pieces(self, answer: Any) -> tuple[int, ...]:
        """Return the ids in an answer of `/tokenize` and keep their bytes. Older servers answer with ids only."""
        entries = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(entries, list):
            raise ProtocolError("the server's tokenizer returned no tokens")
        pairs = [(e.get("id"), e.get("piece")) if isinstance(e, dict) else (e, None) for e in entries]
        ids = token_ids([token for token, _ in pairs])
        for token, (_, piece) in zip(ids, pairs, strict=True):
            if text := token_bytes(piece):
                self._bytes[token] = text
        return tuple(ids)

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Call one server after another until one answers or the time is over."""
        timeout_s = self._timeout_s
        try:
            asyncio.get_running_loop()
            timeout_s = min(timeout_s, _EVENT_LOOP_TIMEOUT_S)
        except RuntimeError:
            pass
        end, pause = time.monotonic() + timeout_s, _FIRST_PAUSE_S
        while True:
            for root in self._roots:
                try:
                    return self._post(root + path, body, min(_CALL_S, timeout_s))
                except TransientError as error:
                    failure = error
                    self._roots = (*(other for other in self._roots if other != root), root)  # call it last next time
            if time.monotonic() + pause > end:
                raise UpstreamError(f"The server's tokenizer does not answer: {failure}.") from failure
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)

    def _post(self, url: str, body: dict[str, Any], limit_s: float) -> dict[str, Any]:
        size = sum(len(value) for value in body.values() if isinstance(value, str | list))
        answer = self._client.fetch_blocking(url, body, limit_s, _MAX_REPLY_BYTES + size * _MAX_BYTES_PER_ITEM)
        if not isinstance(answer, dict) or not {"tokens", "content", "prompt"} & answer.keys():
            raise TransientError(f"{url} returned an unknown document")
        return answer


class GGUFTokenizer:
    """A `Tokenizer` over the vocabulary and chat template in a GGUF file, read by llama-cpp-python without weights."""

    def __init__(self, path: Path) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise ModelError(
                f"Reading the tokenizer of {str(path)!r} needs llama-cpp-python (pip install llama-cpp-python). "
                "Alternatively, name the model's folder or hub id."
            ) from error
        # llama.cpp warns about a context that is not used here. Keep the callback alive.
        self._log_callback = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log_callback, None)
        try:
            self._model: Any = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        except Exception as error:  # llama.cpp raises errors of many kinds for a file that it cannot read
            raise ModelError(f"The tokenizer in {str(path)!r} cannot be loaded: {error}.") from error
        vocabulary = self._model._model.vocab
        tokens = range(self._model.n_vocab())
        self.template = str(self._model.metadata.get("tokenizer.chat_template", ""))
        self.eos_ids = frozenset(i for i in tokens if llama_cpp.llama_vocab_is_eog(vocabulary, i))
        control = frozenset(i for i in tokens if llama_cpp.llama_vocab_is_control(vocabulary, i))
        # llama.cpp makes these of any text, also of text that must have no special tokens.
        added = llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        self._added = frozenset(i for i in tokens if llama_cpp.llama_vocab_get_attr(vocabulary, i) & added)
        marks = self.find_marks()
        self.end_of_thinking, self.closing_ids, self.control_ids = marked_ids(
            marks, self.encode, control | self.eos_ids
        )
        self.reserved: dict[str, int] = {self._raw_text([index]): index for index in control | self.eos_ids}
        self.reserved |= marks.tokens if marks else {}

    def find_marks(self, named: Sequence[str] | None = None) -> ThinkingMarks | None:
        """Return the marks around the model's thinking: the ones that a user named, or those of its template."""
        return find_marks(self.template, self._token_id, named)

    def _token_id(self, text: str) -> int | None:
        """Return the id of a text that is a token of its own, which its characters are not."""
        ids = self.encode(text)
        if len(ids) != 1:
            return None
        is_token = ids[0] in self._added or self._model.tokenize(text.encode(), add_bos=False, special=False) != ids
        return ids[0] if is_token else None

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without adding special tokens. Marks in the text become their ids."""
        return list(self._model.tokenize(text.encode("utf-8", "replace"), add_bos=False, special=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without control ids. Incomplete characters become U+FFFD."""
        return self._raw_text([token for token in ids if token not in self.control_ids])

    def render_chat(self, messages: Sequence[ChatMessage], enable_thinking: bool) -> str:
        """Return the chat in the file's template. Without a template, return the contents in order."""
        specials = (self._model.token_bos(), self._model.token_eos())
        bos, eos = (self._raw_text([token]) if token >= 0 else "" for token in specials)
        first = bos if self._model.metadata.get("tokenizer.ggml.add_bos_token") == "true" else ""
        if not self.template:
            return first + "\n\n".join(message["content"] for message in messages)
        try:
            text = render(
                self.template,
                messages=list(messages),
                add_generation_prompt=True,
                **thinking_switches(enable_thinking),
                bos_token=bos,
                eos_token=eos,
            )
        except Exception as error:  # templates are third-party code, and many refuse a system message
            raise PromptError(f"The model's chat template refuses this chat: {error}.") from error
        return text if text.startswith(first) else first + text

    def _raw_text(self, ids: list[int]) -> str:
        # A previous token keeps the leading space of the first one.
        return bytes(self._model.detokenize(ids, prev_tokens=[0], special=True)).decode("utf-8", "replace")
