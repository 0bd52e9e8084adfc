"""Reads which options of a multiple-choice question a text names, by letter, by text, or both."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vicur.rewards.notation import TEXT_GROUP, key, tidy, words_key

LETTERS = "ABCDEFGHIJ"
_YES_NO = (("yes", "no"), ("true", "false"))

_OPTION = re.compile(
    r"(?i:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)\s*:?\s*)?"
    r"(?:([A-J])[.):]?|[(\[]([A-Ja-j])[)\]][.:]?|([A-Ja-j])[.):]\s+(.+)|[(\[]([A-Ja-j])[)\]][.:]?\s*(\S.*))",
    re.DOTALL,
)
_LEAD = re.compile(
    r"(?:(?:the|an?|my|is|was|therefore|thus|hence|so|clearly|definitely|certainly|probably|likely|most|indeed|simply|"
    r"actually|obviously|correct|right|best|both|answers?|options?|choices?|letters?|labeled|labelled|选项?|"
    r"答案是?)\b[\s:,]*|[\s:*,\"'$]+|\\\()+",
    re.IGNORECASE,
)
# A bare letter is an option only in front of what ends or explains it: "A triangle" names none.
_LETTER = re.compile(
    r"[*$\\{(\[\s]*?(?:\\text(?:bf|rm)?\s*\{)?(?:[(\[]\s*(?P<marked>[A-Ja-j])\s*[)\]]|"
    r"(?P<bare>[A-J])(?P<colon>[.):])?)"
    r"[*}$]*(?P<after>\s*$|[\s*]*[.,:;()*\-=!。，：；\[\]]"
    r"|\s+(?:and|or|&|because|since|as|for|which|is|are|with)\b|\s*[/&]"
    r"|(?<=[)\]])|\s+(?=[^\x00-\x7f])|(?=[^\x00-\x7f]))",
)
_MORE = re.compile(
    r"(?:\s*[,/&;、，]\s*(?:and\s+|or\s+)?|\s+(?:and|or|&)\s+|\s+)?"
    r"(?:options?\s+)?[*]*(?:[(\[]\s*([A-J])\s*[)\]]|([A-J])(?=[\s,.;/&)*、，]|$))",
)
_NEGATION = re.compile(
    r"n't\b|\b(?:not|never|no|neither|nor|cannot|incorrect|wrong|false|except|unlike|"
    r"rather than|instead of|than|opposite)\b|不|非|错",
    re.IGNORECASE,
)
_WRONG = re.compile(
    r"^[\s*.:,]*(?:is|are|was)\s+(?:not|in|un|wrong|false|clearly (?:not|wrong)|"
    r"also (?:not|wrong|incorrect))|^\s*(?:不|错)",
    re.IGNORECASE,
)
_MENTION = re.compile(
    r"(?P<not>\b(?:not|isn't|neither|nor|eliminate|exclude|"
    r"rule out|ruled out|except)\s+(?:option\s+|choice\s+)?)?"
    r"(?:(?:\b(?:options?|choices?|answer)\s+|选项\s*)[*(\[]*(?P<named>[A-J])\b[)\]*]*"
    r"(?P<more>(?:\s*(?:,|/|and|or|&)\s*[*(\[]*[A-J]\b[)\]*]*)*)|[*]*[(\[](?P<marked>[A-J])[)\]][*]*)"
)
_LISTED = re.compile(r"\s*(?:,|;|/|\band\b|\bor\b)\s*(?:\b(?:and|or)\b\s*)?", re.IGNORECASE)
_CLAUSE = r"(?=\s*$|\s*[,.;:!(\[*\"，。：；]|\s+(?:because|since|as|which|—|-)\b)"


@dataclass(frozen=True)
class Options:
    """The options of a question.

    Attributes:
        letters: the letter of each option; "" for options without one, such as "yes" and "no".
        texts: the text of each option, without its letter; "" if it is unknown.
    """

    letters: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """The options, and the indices of the right ones."""

    options: Options
    right: frozenset[int]


Equal = Callable[[str, str], bool]
"""(text, text of an option) -> whether they are equal."""


def split_option(text: str) -> tuple[str, str] | None:
    """The letter and the text of an option: "B" of `B`, `(B)`, `**B**`, "B. 12" or "option B".

    Returns:
        the letter (A to J) and the text after it; None if the text is not an option.
    """
    match = _OPTION.fullmatch(TEXT_GROUP.sub(r"\1", tidy(text)).strip())
    if match is None:
        return None
    alone, bracketed, letter, rest, before, after = match.groups()
    return (alone or bracketed or letter or before).upper(), (rest or after or "").strip()


def option_texts(choices: Sequence[str]) -> tuple[str, ...]:
    """The options without their letters: "A. 12" becomes "12" if it is the first option."""
    texts = []
    for place, choice in enumerate(choices):
        option = split_option(choice)
        labelled = option is not None and option[1] and option[0] == LETTERS[place : place + 1]
        texts.append(option[1] if option is not None and labelled else str(choice).strip())
    return tuple(texts)


def read_key(gold: str, choices: Sequence[str] | None, equal: Equal) -> Key | None:
    """The options and the right ones, from a gold answer that is a text, an index, or one or more letters.

    The order is: an option whose text is literally the gold answer, a letter, an option with an equal text,
    and an index counted from 0: an integer is an index only if no option is that number.

    Returns:
        None if the gold answer names no option.
    """
    if choices and len(choices) > 1:
        options = Options(tuple(LETTERS[: len(choices)].ljust(len(choices))), option_texts(choices))
        right = _right(gold, options, equal)
        return Key(options, frozenset(right)) if right else None
    for pair in _YES_NO:
        if words_key(gold) in pair:
            return Key(Options(("", ""), pair), frozenset({pair.index(words_key(gold))}))
    option = split_option(gold)
    named = _letter_list(gold) or ([option[0]] if option is not None else [])
    if not named:
        return None
    texts = tuple(option[1] if option is not None and letter == option[0] else "" for letter in LETTERS)
    return Key(Options(tuple(LETTERS), texts), frozenset(LETTERS.index(letter) for letter in named))


def _right(gold: str, options: Options, equal: Equal) -> list[int]:
    places = range(len(options.texts))
    if literal := [place for place in places if key(options.texts[place]) == key(gold.strip())]:
        by_letter = options.letters.index(gold.strip()) if gold.strip() in options.letters else -1
        return [by_letter] if by_letter in literal else literal[:1]
    option = split_option(gold)
    letters = _letter_list(gold) or ([option[0]] if option is not None else [])
    if letters and all(letter in options.letters for letter in letters):
        return [options.letters.index(letter) for letter in letters]
    if same := [place for place in places if options.texts[place] and equal(options.texts[place], gold)]:
        return same[:1]
    if re.fullmatch(r"[0-9]{1,2}", gold.strip()) and int(gold) < len(options.texts):
        return [int(gold)]
    return []


def _letter_list(text: str) -> list[str]:
    """The letters of "(A),(C)", "A and C" or "A\\nC"; none for any other text."""
    plain = TEXT_GROUP.sub(r" \1 ", text)
    bare = re.sub(r"\band\b|[\s,;&()\[\]{}\\、，]", " ", plain).split()
    return bare if len(bare) > 1 and all(re.fullmatch("[A-J]", letter) for letter in bare) else []


def named(text: str, options: Options, equal: Equal) -> frozenset[int]:
    """The options that a statement names, by letter or by text; several if it does not decide.

    A letter followed by the text of another option names both options.

    Args:
        text: the text after "the answer is", the content of a box, or a short response.
        options: the options of the question.
        equal: compares a text with that of an option.
    """
    text = tidy(text)
    option = split_option(text)
    exact = [
        place
        for place, option_text in enumerate(options.texts)
        if option_text and key(tidy(option_text)) == key(text)
    ]
    if exact and not (option and option[1]):
        return _with_own_letter(exact, text, options)
    bare = text[match.end() :] if (match := _LEAD.match(text)) and match.end() < len(text) else text
    for candidate in dict.fromkeys((text, bare)):
        if places := _by_letter(candidate, options, equal):
            return places
    if _NEGATION.match(bare) and words_key(bare.split()[0]) not in map(words_key, options.texts):
        return _by_text(text, options, equal, negated=True)
    return _by_text(bare, options, equal) or _by_text(text, options, equal)


def mentioned(text: str, options: Options) -> frozenset[int]:
    """The options that a text mentions by letter, "(B)" or "option B", without rejecting them."""
    places: set[int] = set()
    for match in _MENTION.finditer(text):
        letter = match["named"] or match["marked"]
        if (
            letter in options.letters
            and not match["not"]
            and not _WRONG.match(text[match.end() : match.end() + 30])
        ):
            letters = [letter, *re.findall("[A-J]", match["more"] or "")]
            places |= {options.letters.index(letter) for letter in letters if letter in options.letters}
    return frozenset(places)


def contained(text: str, options: Options) -> frozenset[int]:
    """The options whose text is in a sentence as whole words; if one is part of another, the longer one."""
    plain = " " + " ".join(re.findall(r"\w+|[^\w\s]", tidy(text).casefold())) + " "
    if _NEGATION.search(tidy(text)):
        return frozenset()
    hits: dict[int, str] = {}
    for place, option_text in enumerate(options.texts):
        words = " ".join(re.findall(r"\w+|[^\w\s]", tidy(option_text).casefold()))
        if re.search(r"[^\W\d_]{2}", words) and f" {words} " in plain:
            hits[place] = words
    whole = [
        place
        for place, words in hits.items()
        if not any(words != other and words in other for other in hits.values())
    ]
    return frozenset(whole)


def _by_letter(text: str, options: Options, equal: Equal) -> frozenset[int]:
    if re.fullmatch("[a-j]", text):
        text = text.upper()
    if (
        re.fullmatch("[A-J]{2,6}", text)
        and sorted(set(text)) == list(text)
        and set(text) <= set(options.letters)
    ):
        return frozenset(options.letters.index(letter) for letter in text)  # "AC"
    match = _LETTER.match(text)
    if match is None or not any(options.letters):
        return frozenset()
    letter = (match["marked"] or match["bare"]).upper()
    if letter not in options.letters:  # no option has this letter: the text after it decides
        marked = match["marked"] or match["colon"]
        return (
            _by_text(text[match.end("colon") if match["colon"] else match.end() :].strip(), options, equal)
            if marked
            else frozenset()
        )
    if (match["marked"] or "").islower() and len(text) > 60:
        return frozenset()
    places = {options.letters.index(letter)}
    start = match.start("after")
    while more := _MORE.match(text, start):
        other = more.group(1) or more.group(2)
        if other in options.letters:
            places.add(options.letters.index(other))
        start = more.end()
    rest = text[start:].lstrip(" .,:;*-=$})]").rstrip(" .,;*$")
    rest = rest[1:] if rest.startswith("(") else rest
    if _WRONG.match(" " + rest):
        return frozenset()
    if rest and len(places) == 1:
        (lettered,) = places
        if options.texts[lettered] and _states(rest, options.texts[lettered], equal):
            return frozenset(places)
        places |= {
            place
            for place, text in enumerate(options.texts)
            if place != lettered and _states(rest, text, equal)
        }
    return frozenset(places)


def _states(rest: str, option: str, equal: Equal) -> bool:
    """Whether the text after a letter is that of an option, possibly followed by an explanation."""
    if not option:
        return False
    head = re.split(r"\)|[.;](?:\s|$)|,\s+(?:as|because|since|so|which)\b", rest, maxsplit=1)[0].strip(" $*")
    whole = {words_key(head), words_key(rest)}
    begun = re.match(re.escape(tidy(option)) + _CLAUSE, rest, re.IGNORECASE) is not None
    return begun or words_key(tidy(option)) in whole or (0 < len(head) < 80 and equal(head, option))


def _by_text(text: str, options: Options, equal: Equal, negated: bool = False) -> frozenset[int]:
    same = [
        place for place, option_text in enumerate(options.texts) if option_text and equal(text, option_text)
    ]
    if same:
        return _with_own_letter(same, text, options)
    if negated:
        return frozenset()
    parts = [words_key(part) for part in _LISTED.split(text)]
    texts = [words_key(tidy(option_text)) for option_text in options.texts]
    if len(parts) > 1 and all(part and part in texts for part in parts):
        return frozenset(texts.index(part) for part in parts)
    begun = {
        place: option_text
        for place, option_text in enumerate(options.texts)
        if option_text and re.match(re.escape(tidy(option_text)) + _CLAUSE, text, re.IGNORECASE)
    }
    if begun:
        longest = max(map(len, begun.values()))
        return frozenset(place for place, option_text in begun.items() if len(option_text) == longest)
    return contained(text, options)


def _with_own_letter(same: Sequence[int], text: str, options: Options) -> frozenset[int]:
    """The option whose letter is the text, if several options have the same text; otherwise all of them."""
    plain = text.strip()
    if len(same) > 1 and plain in options.letters and options.letters.index(plain) in same:
        return frozenset({options.letters.index(plain)})
    literal = [place for place in same if words_key(tidy(options.texts[place])) == words_key(text)]
    return frozenset(literal or same)
