"""What a text seems to be about: word likeness good enough for plausible synthetic answers."""

from __future__ import annotations

import re
from functools import lru_cache

WORD = re.compile(r"[^\W_]+")
SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
STEM_CHARACTERS = 5
FEW_CHARACTERS = 12
FEW_WORDS = 3
PROSE_SHARE = 0.9
NEGATORS = frozenset(
    {"not", "no", "never", "hardly", "without", "isn", "wasn", "don", "didn", "doesn", "won"}
)
FALLBACKS = frozenset({"other", "none", "neutral", "mixed", "unknown", "unclear", "misc", "gener", "nothi"})
GOOD = """good great excellent love loved lovely perfect perfectly happy best amazing wonderful fast quick
    recommend thanks thank beautiful comfortable easy works worked nice delighted pleased superb fantastic
    friendly helpful reliable solid sturdy flawless enjoyed brilliant favourite favorite"""
BAD = """bad poor terrible awful hate hated worst broken broke late slow disappointed disappointing useless
    refund return returned waste defective damaged missing wrong cheap rude unhelpful problem issue fails
    failed failure never crash crashes annoying dirty noisy expensive overpriced scam cracked leak leaks
    torn unusable complaint complain cancelled canceled"""
TOPICS = {
    "deliv shipp logis": "delivery deliver delivered shipping shipped parcel package courier arrived late",
    "quali mater produ defec": "quality broke broken cheap sturdy material cracked damaged defective torn",
    "price cost value bill payme": "price expensive cheap overpriced cost costs money worth charged bill "
    "billing payment paid fee",
    "refun retur": "refund refunded return returned money back exchange",
    "servi suppo custo staff": "service support staff agent answered rude helpful phone email reply waiting",
    "size fit sizin": "size small large tight loose fit fits fitting narrow",
    "bug techn error softw": "bug crash crashes error app update screen freeze login software version",
    "accou login acces secur": "account password login sign locked access reset verification",
    "featu reque sugge": "feature wish add option would could suggestion please support",
    "sport": "team match game season coach player goal league cup win won",
    "busin finan econo": "shares market profit company bank stock sales growth economy investors",
    "scien techno": "research scientists study space nasa software computer internet technology",
    "polit world gover": "government president minister election war police party country vote",
    "compl negat": BAD,
    "prais posit recom": GOOD,
    "spam scam fraud": "free winner prize click offer cash urgent claim guaranteed",
    "urgen prior": "urgent immediately asap now emergency critical outage down",
}


def stem(word: str) -> str:
    """Return the first letters of a word in lower case, enough to tell it from most others."""
    return word[:STEM_CHARACTERS].lower()


_GOOD = frozenset(stem(word) for word in GOOD.split())
_BAD = frozenset(stem(word) for word in BAD.split())
_RELATED = {
    key: frozenset(stem(word) for word in words.split())
    for keys, words in TOPICS.items()
    for key in keys.split()
}


@lru_cache(maxsize=4096)
def label_stems(label: str) -> tuple[str, ...]:
    """Return the stems of a label's words; camelCase and snake_case count as separate words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label)
    parts = [stem(word) for word in WORD.findall(spaced.replace("_", " "))]
    return (*parts, stem(label)) if spaced != label else tuple(parts)


def subject(text: str) -> str:
    """Return the part of a prompt that is its material, without the instruction before or after it.

    Of several paragraphs that is what follows the first, or what precedes the last, whichever is longer; of
    one it is what stands after a line break or a colon, if enough is left.
    """
    text = text.strip()
    after, before = text.partition("\n\n")[2].strip(), text.rpartition("\n\n")[0].strip()
    if max(len(after), len(before)) >= FEW_CHARACTERS:
        return max(after, before, key=len)
    for mark in ("\n", ": "):
        after = text.rpartition(mark)[2].strip()
        if len(after) >= FEW_CHARACTERS:
            text = after
    return text


class Subject:
    """The words of one text, read once."""

    __slots__ = ("counts", "sentiment", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.counts: dict[str, int] = {}
        self.sentiment = 0
        flipped = 0
        for word in WORD.findall(text[:20_000].lower()):
            each = word[:STEM_CHARACTERS]
            self.counts[each] = self.counts.get(each, 0) + 1
            sign = -1 if flipped > 0 else 1
            flipped -= 1
            if each in _GOOD:
                self.sentiment += sign
            elif each in _BAD:
                self.sentiment -= sign
            if word in NEGATORS:
                flipped = 3

    def likeness(self, label: str) -> float:
        """How much the text speaks of `label`; 0 means not at all."""
        score = 0.0
        for each in label_stems(label):
            score += 2.0 * min(self.counts.get(each, 0), 3)
            if each in {"posit", "prais", "good", "happy"}:
                score += max(0, self.sentiment)
            elif each in {"negat", "compl", "bad", "unhap"}:
                score += max(0, -self.sentiment)
            elif each in _RELATED:
                related = _RELATED[each]
                if len(related) < len(self.counts):
                    score += sum(1 for word in related if word in self.counts)
                else:
                    score += sum(1 for word in self.counts if word in related)
            elif each in FALLBACKS:
                score += 0.5
        return score

    def sentences(self) -> list[str]:
        """Return the sentences of the text, those made of words if there are any."""
        found = [each.strip() for each in SENTENCE.findall(self.text[:20_000])]
        told = [each for each in found if len(WORD.findall(each)) > FEW_WORDS and _is_prose(each)]
        return told or [each for each in found if each] or [self.text.strip() or "nothing"]


def _is_prose(sentence: str) -> bool:
    letters = sum(each.isalpha() or each == " " for each in sentence)
    return letters >= PROSE_SHARE * len(sentence)
