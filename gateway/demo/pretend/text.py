"""The text of every answer: known from its prompt, in many scripts, in small pieces."""

import re
import zlib
from itertools import cycle, islice
from typing import Any, Final

Object = dict[str, Any]

PARAGRAPHS: Final = (
    "What was written down before it was shown survives a lost connection, to the last word.",
    "Связь пропадает чаще, чем хочется: тоннель, лифт, новая версия. Браузер вернётся сам.",
    "يكتب الخادم كل حدث في السجل قبل إرساله، ولذلك لا يضيع شيء عند انقطاع الاتصال.",
    "הדפדפן מתחבר מחדש לבדו ומבקש רק את מה שחסר; דבר אינו אובד ודבר אינו מגיע פעמיים.",
    "断线之后，浏览器会自动重连，并带上最后一个事件的编号；服务器从那里继续，不多也不少。",
    "途中でページを閉じても、答えは記録に残ります。もう一度開けば、最初から読み直せます。",
    "कनेक्शन टूटने पर भी उत्तर खोता नहीं: बस एक पल रुकिए, बाकी शब्द अपने आप आ जाएँगे।",
    "Même une phrase accentuée (où, garçon, Noël, cœur) arrive entière, « guillemets » compris.",
    "👩‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇫🇷 🇯🇵 🇧🇷 ❤️‍🔥 👍🏿, then U+2028:\N{LINE SEPARATOR} it ends no event.",
)


SCRIPTS: Final = {
    "latin": (
        "Nothing is lost. Every word of this answer was written to a log before you saw it, so "
        "when the line drops your browser asks for the rest and carries on where it stopped.",
        "A reload, a second tab or another device reads the same log. It sees the same words in "
        "the same order, and the model is not asked again.",
        "A deploy sends its viewers to the next server. Even a server that is killed outright "
        "leaves its log behind, and another one takes the answer over.",
        "Stop means stop: the model is told at once, whichever server happens to hold the "
        "connection, and you pay for no more words.",
        "A loop around fetch has none of this. Its answer lives in one connection, so a lift, a "
        "tunnel or a closed lid throws away what was already paid for.",
        "And the page needs no library for it. A bare EventSource reconnects by itself and says "
        "which word it saw last; that is all the gateway has to know.",
    ),
    "greek": (
        "Τίποτα δεν χάνεται. Κάθε λέξη αυτής της απάντησης γράφτηκε στο ημερολόγιο πριν τη δεις.",
        "Όταν πέσει η σύνδεση, ο φυλλομετρητής ζητά τα υπόλοιπα και συνεχίζει από εκεί που έμεινε.",
        "Μια δεύτερη καρτέλα διαβάζει το ίδιο ημερολόγιο: τις ίδιες λέξεις, με την ίδια σειρά.",
        "Το μοντέλο ρωτήθηκε μία φορά και πληρώθηκε μία φορά.",
    ),
    "chinese": (
        "什么都不会丢。这个回答的每个字，在您看到之前就已写入日志。",
        "断线之后，浏览器会自动重连，从上次停下的地方继续，不多也不少。",
        "刷新页面、另开标签页或换一台设备，读到的都是同一份日志。",
        "模型只被询问一次，也只付一次费。",
    ),
    "arabic": (
        "لا يضيع شيء. كُتبت كل كلمة من هذا الجواب في السجل قبل أن تراها.",
        "وحين ينقطع الاتصال يطلب المتصفح البقية وحده، ويتابع من حيث توقف.",
        "والنافذة الثانية تقرأ السجل نفسه: الكلمات نفسها بالترتيب نفسه.",
        "يُسأل النموذج مرة واحدة، ويُدفع ثمنه مرة واحدة.",
    ),
    "emoji": (
        "👩‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 arrive whole, however a model cuts them: 🇬🇷 🇯🇵 🇧🇷 ❤️‍🔥 👍🏿.",
        "🛗 🚇 🚪 🔌 cut the line, 📡 ➡️ 🔁 brings it back, ✅ 0️⃣ lost, 0️⃣ twice.",
        "💶 once, 💶💶 never: 🧾 says so.",
    ),
}
_OF_PROMPTS: Final = {
    "greek": r"[\u0370-\u03ff\u1f00-\u1fff]",
    "chinese": r"[\u4e00-\u9fff]",
    "arabic": r"[\u0600-\u06ff]",
    "emoji": r"[\U0001f300-\U0001faff]",
}


def answer(
    messages: list[Object], tokens: int | None = None, choice: int = 0, script: str = ""
) -> list[str]:
    """Return the exact deltas of the answer to these messages: the same for the same prompt."""
    prompt = prompt_of(messages)
    if script == "prompt":
        script = script_of(prompt)
    told = SCRIPTS.get(script, PARAGRAPHS)
    turn = (zlib.crc32(prompt.encode()) + choice) % len(told)
    paragraphs = (f"“{prompt[:80].strip()}”", *told[turn:], *told[:turn])
    # At most five characters a piece: models cut words, and emoji sequences, just as blindly.
    pieces: list[str] = re.findall(r"\s*\S{1,5}", "\n\n".join(paragraphs))
    return pieces if tokens is None else list(islice(cycle(pieces), tokens))


def script_of(prompt: str) -> str:
    """Return the script that a prompt is answered in, as a model would: its own."""
    found = (name for name, letters in _OF_PROMPTS.items() if re.search(letters, prompt))
    return next(found, "latin")


def prompt_of(messages: list[Object]) -> str:
    """Return the text of the last message of a user."""
    said = [
        text_of(message.get("content")) for message in messages if message.get("role") == "user"
    ]
    return said[-1] if said else ""


def text_of(content: object) -> str:
    """Return a message's text, a string or a list of parts, lone surrogates replaced."""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "").encode("utf-8", "replace").decode()
