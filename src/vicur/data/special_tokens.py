"""Keeps special tokens inside texts from being read as tokens.

A question may ask what `<|image_pad|>` means, and a hint may hold `<|im_end|>`. Read as tokens, the first
is a placeholder without an image and the second ends the user's turn. So texts are marked before the chat
template sees them: a character that no text has, the mark, breaks every special token in them. Neither
template nor processor then finds one. After tokenising, the stretches that hold the mark are tokenised
again, without the mark and with special tokens read as plain text.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vicur.data.sample import Message

_TOKEN_LIKE = r"<\|[^<>|]*\|>"
"""Pattern of special tokens and of texts that only look like them: processors use some of their own while
they expand media."""
_LAST_PRIVATE = 0x10FFFD
"""The last character of Unicode's last private use plane; marks are searched from here downwards."""


class QuotedTokens:
    """Marks special tokens in texts, so that they are tokenised as text.

    Args:
        tokenizer: a byte-level tokenizer, whose `decode` gives back the text that it encoded.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # Some checkpoints list tokens of their chat template as ordinary added tokens.
        special = {
            str(token): number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special or re.fullmatch(_TOKEN_LIKE, str(token))
        }
        self._ids = frozenset(special.values())
        names = sorted({*special, *tokenizer.all_special_tokens}, key=len, reverse=True)
        # A look-ahead, because tokens may overlap and each is broken after its own first character.
        self._start = re.compile(f"(?=(?:{'|'.join([*map(re.escape, names), _TOKEN_LIKE])}))(.)", re.DOTALL)

    def marked(self, messages: Sequence[Message]) -> tuple[list[Message], str | None]:
        """The messages with every special token in their texts broken by the mark.

        Returns:
            the messages, and the mark; the mark is None if no text holds a special token.
        """
        merged = [self._merged(message) for message in messages]
        texts = list(_texts(merged))
        if not any(self._start.search(text) for text in texts):
            return list(messages), None
        used = set().union(*texts)
        mark = next(chr(code) for code in range(_LAST_PRIVATE, 0, -1) if chr(code) not in used)
        return [self._broken(message, mark) for message in merged], mark

    def restored(self, ids: Sequence[int], mark: str) -> list[list[int]]:
        """The tokens of a marked prompt as they are without the mark, in stretches between special tokens.

        Args:
            ids: the marked text's tokens from the tokenizer or the processor.
            mark: the mark that `marked` returned.

        Returns:
            one list for each stretch of text, and one for each special token between them.
        """
        return [self._restored(stretch, mark) for stretch in self._stretches(ids)]

    def _stretches(self, ids: Sequence[int]) -> Iterator[list[int]]:
        text: list[int] = []
        for token in ids:
            if token not in self._ids:
                text.append(token)
                continue
            if text:
                yield text
                text = []
            yield [token]
        if text:
            yield text

    def _restored(self, stretch: list[int], mark: str) -> list[int]:
        if len(stretch) == 1 and stretch[0] in self._ids:
            return stretch
        text = self.tokenizer.decode(stretch, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return self.plain_ids(text.replace(mark, "")) if mark in text else stretch

    def plain_ids(self, text: str) -> list[int]:
        """The tokens of a text; special tokens in it are tokenised as text."""
        ids = self._ids_of(text)
        if self._ids.isdisjoint(ids):
            return ids
        # `split_special_tokens` leaves added tokens whole that are not marked as special: break them here.
        breaks = [0, *(match.end(1) for match in self._start.finditer(text)), len(text)]
        return [token for start, end in itertools.pairwise(breaks) for token in self._ids_of(text[start:end])]

    def _ids_of(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    @staticmethod
    def _merged(message: Message) -> Message:
        """Join adjacent texts: the template joins them anyway, and a token may be split between them."""
        if isinstance(message["content"], str):
            return message
        content: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "text" and content and content[-1]["type"] == "text":
                content[-1] = {**content[-1], "text": content[-1]["text"] + part["text"]}
            else:
                content.append(part)
        return {**message, "content": content}

    def _broken(self, message: Message, mark: str) -> Message:
        def broken(text: str) -> str:
            return self._start.sub(lambda match: match[1] + mark, text)

        if isinstance(message["content"], str):
            return {**message, "content": broken(message["content"])}
        content = [
            {**part, "text": broken(part["text"])} if part["type"] == "text" else part
            for part in message["content"]
        ]
        return {**message, "content": content}


def _texts(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        if isinstance(message["content"], str):
            yield message["content"]
        else:
            yield from (part["text"] for part in message["content"] if part["type"] == "text")
