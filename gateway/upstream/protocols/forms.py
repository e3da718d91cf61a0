"""Forms: where a protocol's JSON has what a preset rules over. Pure; data, but for finding it.

A name with a dot is a member's member: `options.num_predict`.
"""

from typing import Any, Literal, NamedTuple

from gateway.errors import Rejected


class Form(NamedTuple):
    """Where one kind of request has its messages, its system prompt and its bounds."""

    messages: str = "messages"
    system: str = ""  # "": a system prompt is the first message.
    system_as: Literal["text", "blocks", "parts"] = "text"  # Else what that member is.
    parts: bool = False  # A message's text is in `parts`, and the assistant is a `model`.
    caps: tuple[str, ...] = ("max_tokens",)  # Names of the bound; the upstream reads the first.
    copies: tuple[str, ...] = ("n", "best_of")  # How many answers.
    needed: frozenset[str] = frozenset()  # What a page must set beside model and messages.
    own: frozenset[str] = frozenset()  # What the protocol itself sets or reads.

    @property
    def roots(self) -> set[str]:
        """The members that hold the bounds."""
        return {name.partition(".")[0] for name in (*self.caps, *self.copies)}

    @property
    def holders(self) -> set[str]:
        """Those of them that hold more than one bound: objects."""
        return {name.partition(".")[0] for name in (*self.caps, *self.copies) if "." in name}


# Members that take the place of a system prompt, go around it or show it, with whatever server.
REVEALING = frozenset(
    (
        *("_debug_render_only", "add_generation_prompt", "add_special_tokens", "cachedContent"),
        *("chat_template", "chat_template_kwargs", "context", "continue_final_message"),
        *("conversation", "data_sources", "documents", "echo", "extra_body", "include_prompt"),
        *("input", "instructions", "kv_transfer_params", "messages", "plugins", "preset"),
        *("previous_response_id", "prompt", "prompt_embeds", "prompt_id", "prompt_label"),
        *("prompt_logprobs", "prompt_token_ids", "prompt_variables", "raw", "return_prompt"),
        *("return_token_ids", "return_tokens_as_token_ids", "suffix", "system"),
        *("systemInstruction", "template", "tokens", "transforms"),
    )
)
# Members by which a page names a model, or who is asked, beside `model`.
LEADING_ELSEWHERE = frozenset(
    (
        *("api_base", "base_url", "content_policy_fallbacks", "context_window_fallbacks"),
        *("deployment_id", "engine", "extra_body", "fallbacks", "model_id", "models"),
        *("preset", "user_config"),
    )
)


def spelled(name: str) -> str:
    """Return what all spellings of a name share, as lenient upstreams read them.

    Servers in Go take `MODEL` for `model`, and those of protobuf `max_tokens` for `maxTokens`.
    """
    return name.casefold().replace("_", "")


def found(request: dict[str, Any], name: str) -> Any:
    """Return what a request has under a name, None if it has nothing; raises Rejected."""
    root, _, leaf = name.partition(".")
    value = request.get(root)
    if not leaf or value is None:
        return value
    if not isinstance(value, dict):
        raise Rejected("bad_request", f'"{root}" must be an object.')
    return value.get(leaf)


def without(request: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return a request that lacks these names."""
    kept = dict(request)
    for name in names:
        root, _, leaf = name.partition(".")
        if not leaf:
            kept.pop(root, None)
        elif isinstance(kept.get(root), dict):
            kept[root] = {key: each for key, each in kept[root].items() if key != leaf}
    return kept


def put(request: dict[str, Any], name: str, value: Any) -> None:
    """Set what a request has under a name; what was there is not changed itself."""
    root, _, leaf = name.partition(".")
    request[root] = {**(request.get(root) or {}), leaf: value} if leaf else value


def second_spelling(members: dict[str, Any], names: set[str]) -> str | None:
    """Return a member that is one of these names spelled otherwise, None if there is none."""
    taken = {spelled(name) for name in names}
    return next((key for key in members if key not in names and spelled(key) in taken), None)
