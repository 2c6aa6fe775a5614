"""A conversation that is to go on: its prompt, and what reads the answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from sovereign_ai.gateway.generation import Assignment
from sovereign_ai.gateway.templates import PromptBuilder
from sovereign_ai.gateway.wire.choices import Reading
from sovereign_ai.gateway.wire.formats import Format, encode
from sovereign_ai.gateway.wire.messages import for_template
from sovereign_ai.gateway.wire.requests import ChatRequest, Generation
from sovereign_ai.gateway.wire.toolcalls import Form, reader_for
from sovereign_ai.gateway.wire.tools import Calling


class Room(msgspec.Struct, frozen=True):
    """Tokens: `needed` of a context at least, `answer` at most."""

    needed: int
    answer: int


class Conversation(msgspec.Struct, frozen=True):
    """What every format of conversations comes down to: a chat, and what others have beyond it.

    `beginning` of the answer, which the model goes on from. `stops`: which of them ended the answer is to be
    told. `param` and `structure_param`: the request's fields with messages, and with the form of the answer.
    """

    request: ChatRequest
    beginning: str = ""
    stops: Sequence[str] = ()
    param: str = "messages"
    structure_param: str = "response_format"

    def prompt(self, prompts: PromptBuilder) -> str:
        """Raises InvalidRequest."""
        calls = self.request.calling
        text = prompts.render(
            for_template(self.request.messages, self.param),
            None if calls is None else calls.for_template(),
            param=self.param,
        )
        return text + self.beginning

    def shaped(self, work: Assignment, form: Form | None) -> Assignment:
        """`work` with the answer written and read as the request asks. `form`: of the model's calls."""
        calls = self.request.calling
        if (structure := self.request.structure(form)) is not None:
            field = self.structure_param
            if calls is not None:
                field = "tool_choice" if calls.forced else "tools"
            work = _structured(work, structure, field)
        if calls is None and not self.stops:
            return work
        work = msgspec.structs.replace(work, reading=partial(_reading, calls, form, self.stops))
        if calls is not None and form == "mistral":
            return _with_sampling(work, skip_special_tokens=False)  # the mark of its calls is one
        return work


def assignment(request: Generation, text: str, room: Room, format_: Format) -> Assignment:
    """The generation of `request` from the prompt `text`."""
    sampling = [request.sampling(room.answer, choice) for choice in range(request.n)]
    return Assignment(
        text=text,
        sampling=sampling,
        tokens=room.needed,
        stream=request.stream,
        format=format_,
        scored=request.top is not None,
        fields={"logit_bias": "logit_bias"} if "logit_bias" in sampling[0] else {},
    )


def _reading(calls: Calling | None, form: Form | None, stops: Sequence[str]) -> Reading:
    return Reading(None if calls is None else reader_for(calls, form), stops)


def _with_sampling(work: Assignment, **parameters: Any) -> Assignment:
    return msgspec.structs.replace(work, sampling=[{**one, **parameters} for one in work.sampling])


def _structured(work: Assignment, structure: dict[str, Any], field: str) -> Assignment:
    """`field`: of the request, which asks for the structure. Sent as JSON in a text, as NVIDIA's backend
    wants it."""
    made = _with_sampling(work, structured_outputs=encode(structure).decode())
    return msgspec.structs.replace(made, fields={**made.fields, "structured_outputs": field})
