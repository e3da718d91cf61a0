"""Conversations: what was said so far, as the APIs of providers take it. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.upstream.protocols.conversation import (
    Mused,
    Part,
    Picture,
    Result,
    Turn,
    Use,
    Words,
    above,
    as_json,
    fetched,
)

Said = list[dict[str, Any]]


def for_chat(turns: Iterable[Turn]) -> dict[str, Any]:
    """Return the messages of a chat completion; it takes no thoughts."""
    messages: Said = []
    for turn in turns:
        if turn.role == "tool":
            messages += [
                {"role": "tool", "tool_call_id": each.call_id, "content": each.text}
                for each in turn.results
            ]
        elif turn.uses:
            calls = [_chat_call(each) for each in turn.uses]
            told = {"role": "assistant", "content": turn.text or None, "tool_calls": calls}
            messages.append(told)
        else:
            content = [_chat_part(each) for each in turn.parts] if turn.pictures else turn.text
            messages.append({"role": turn.role, "content": content})
    return {"messages": messages}


def _chat_call(use: Use) -> dict[str, Any]:
    function = {"name": use.name, "arguments": as_json(use.given)}
    return {"id": use.call_id, "type": "function", "function": function}


def _chat_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Picture):
        return {"type": "image_url", "image_url": {"url": part.url}}
    return {"type": "text", "text": part.text if isinstance(part, Words) else ""}


def for_responses(turns: Iterable[Turn]) -> dict[str, Any]:
    """Return the input of a response: thoughts only as they were encrypted."""
    return {"input": [item for turn in turns for item in _response_items(turn)]}


def _response_items(turn: Turn) -> Said:
    items: Said = []
    for part in turn.parts:
        match part:
            case Use():
                told = {"call_id": part.call_id, "name": part.name}
                items.append({"type": "function_call", **told, "arguments": as_json(part.given)})
            case Result():
                told = {"call_id": part.call_id, "output": part.text}
                items.append({"type": "function_call_output", **told})
            case Mused():
                items += _encrypted(part)
            case _:
                _speak(items, turn.role, _response_part(part, turn.role))
    return items


def _encrypted(part: Mused) -> Said:
    kept = part.noted.get("openai", {})
    if not isinstance(kept.get("reasoningEncryptedContent"), str):
        return []
    told = {"id": kept.get("itemId"), "encrypted_content": kept["reasoningEncryptedContent"]}
    return [{"type": "reasoning", **told, "summary": []}]


def _speak(items: Said, role: str, part: dict[str, Any]) -> None:
    if not items or items[-1].get("role") != role:
        items.append({"role": role, "content": []})
    items[-1]["content"].append(part)


def _response_part(part: Part, role: str) -> dict[str, Any]:
    if isinstance(part, Picture):
        return {"type": "input_image", "image_url": part.url}
    text = part.text if isinstance(part, Words) else ""
    return {"type": "output_text" if role == "assistant" else "input_text", "text": text}


def for_messages(turns: Sequence[Turn]) -> dict[str, Any]:
    """Return what was said as Anthropic takes it: thoughts only as they were signed."""
    messages: Said = []
    for turn in turns:
        if turn.role != "system":
            role = "assistant" if turn.role == "assistant" else "user"
            blocks = [block for part in turn.parts for block in _blocks(part)]
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += blocks
            elif blocks:
                messages.append({"role": role, "content": blocks})
    system = above(turns)
    return {"messages": messages, **({"system": system} if system else {})}


def _blocks(part: Part) -> Said:
    match part:
        case Words():
            return [{"type": "text", "text": part.text}]
        case Picture() if part.data:
            source = {"type": "base64", "media_type": part.media_type, "data": part.data}
            return [{"type": "image", "source": source}]
        case Picture():
            return [{"type": "image", "source": {"type": "url", "url": part.url}}]
        case Use():
            given = part.given if isinstance(part.given, dict) else {}
            return [{"type": "tool_use", "id": part.call_id, "name": part.name, "input": given}]
        case Result():
            told = {"tool_use_id": part.call_id, "content": part.text}
            return [{"type": "tool_result", **told, **({"is_error": True} if part.failed else {})}]
    kept = part.noted.get("anthropic", {})
    if kept.get("signature"):
        return [{"type": "thinking", "thinking": part.text, "signature": kept["signature"]}]
    if kept.get("redactedData"):
        return [{"type": "redacted_thinking", "data": kept["redactedData"]}]
    return []


def for_contents(turns: Sequence[Turn]) -> dict[str, Any]:
    """Return what was said as Gemini takes it; thoughts stay where they were."""
    contents: Said = []
    for turn in turns:
        parts = [told for part in turn.parts if (told := _gemini_part(part))]
        if turn.role != "system" and parts:
            role = "model" if turn.role == "assistant" else "user"
            contents.append({"role": role, "parts": parts})
    system = above(turns)
    told = {"systemInstruction": {"parts": [{"text": system}]}} if system else {}
    return {"contents": contents, **told}


def _gemini_part(part: Part) -> dict[str, Any]:
    match part:
        case Words():
            return {"text": part.text}
        case Picture() if part.data:
            return {"inlineData": {"mimeType": part.media_type, "data": part.data}}
        case Picture():
            return {"fileData": {"mimeType": part.media_type, "fileUri": part.url}}
        case Use():
            signature = part.noted.get("google", {}).get("thoughtSignature")
            given = part.given if isinstance(part.given, dict) else {}
            signed = {"thoughtSignature": signature} if signature else {}
            return {"functionCall": {"name": part.name, "args": given}, **signed}
        case Result():
            name = "error" if part.failed else "output"
            return {"functionResponse": {"name": part.name, "response": {name: part.value}}}
    return {}


def for_ollama(turns: Iterable[Turn]) -> dict[str, Any]:
    """Return the messages of Ollama's chat, thoughts too; it fetches no image."""
    messages: Said = []
    for turn in turns:
        if turn.role == "tool":
            messages += [
                {"role": "tool", "tool_name": each.name, "content": each.text}
                for each in turn.results
            ]
            continue
        told: dict[str, Any] = {"role": turn.role, "content": turn.text}
        if thoughts := "".join(part.text for part in turn.parts if isinstance(part, Mused)):
            told["thinking"] = thoughts
        if turn.uses:
            calls = [{"name": each.name, "arguments": each.given} for each in turn.uses]
            told["tool_calls"] = [{"function": each} for each in calls]
        if turn.pictures:
            told["images"] = [_inline(each) for each in turn.pictures]
        messages.append(told)
    return {"messages": messages}


def _inline(picture: Picture) -> str:
    if not picture.data:
        raise fetched(picture)
    return picture.data
