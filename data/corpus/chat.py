"""How a conversation is put to a model: by the chat template of its tokeniser, or as a plain transcript.

Messages are `{"role": …, "content": …}` with the roles system (only in front), user and assistant.
"""

from collections.abc import Mapping, Sequence

from support.errors import UserError

Message = Mapping[str, str]
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
SAID = {USER: "User:", ASSISTANT: "Assistant:"}  # of a transcript


def transcript(messages: Sequence[Message]) -> str:
    """The text that a model without a chat template goes on from: a line a message, and the beginning of an answer."""
    lines = [
        f"{each['content']}\n\n" if each["role"] == SYSTEM else f"{SAID[each['role']]} {each['content']}\n"
        for each in messages
    ]
    return f"{''.join(lines)}{SAID[ASSISTANT]}"


def templated(messages: Sequence[Message], template: str, special: Mapping[str, str], asks: bool) -> str:
    """The text of a chat template; where it `asks`, with the beginning of an answer. `special` names special tokens.

    Errors: `UserError` where the template does not take the messages.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    given = [dict(each) for each in messages]
    try:
        (text,), _ = render_jinja_template([given], chat_template=template, add_generation_prompt=asks, **special)
    except TemplateError as error:
        raise UserError(f"the chat template does not take this conversation: {error}") from None
    return str(text)
