"""Which language a text is in, told by function words: crude and honest about it, without a model."""

from __future__ import annotations

from collections.abc import Sequence

from lmopt.data.pieces import pieces
from lmopt.data.shingles import words
from lmopt.data.stage import Verdict, filter_stage
from lmopt.techniques.filters import Language

_WORDS = {
    "en": """
        the of and to in is that it for was with as on be are this by at from or an have not they which you
        were their has but been had will there its who would if can when what all more we your he she his
        her
    """,
    "de": """
        der die und das von zu den mit sich des ist im dem nicht ein eine als auch es auf für an werden aus
        er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder
        aber vor zur
    """,
    "fr": """
        de la le et les des en un une du est que dans qui par pour au sur pas plus ne ce avec il sont se son
        ou mais comme nous vous été cette aux sa leur ses elle être fait ont deux même aussi
    """,
    "es": """
        de la que el en y los del se las por un para con no una su al lo como más pero sus le ya este sí
        porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante uno
    """,
    "it": """
        di e che la il un a per in una sono mi non è con si da come lo del ma le al della dei nel alla più
        anche gli delle questo i era ha o essere suo dal se sua stato tra loro nella fra
    """,
    "pt": """
        de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem
        à seu sua ou ser quando muito há nos já está eu também só pelo pela até isso
    """,
    "nl": """
        de en van ik te dat die in een hij het niet zijn is was op aan met als voor had er maar om hem dan
        zou of wat mijn men dit zo door over ze zich bij ook tot je mij uit der daar haar naar
    """,
}
FUNCTION_WORDS = {code: frozenset(word.encode() for word in text.split()) for code, text in _WORDS.items()}
"""About 45 of the commonest function words of each language."""
LEAST_WORDS = 20
"""Shorter texts are not judged: a few words say little of a language."""


def shares(text: str) -> dict[str, float]:
    """Language -> share of the text's words that are function words of it; empty for texts that are too short."""
    total, count = 0, dict.fromkeys(FUNCTION_WORDS, 0)
    for piece in pieces(text):
        found = words(piece)
        total += len(found)
        for code, known in FUNCTION_WORDS.items():
            count[code] += sum(map(known.__contains__, found))
    return {code: number / total for code, number in count.items()} if total >= LEAST_WORDS else {}


def judge(config: Language, texts: Sequence[str]) -> list[Verdict]:
    """A verdict a text."""
    return [_verdict(config, shares(text)) for text in texts]


def _verdict(config: Language, share: dict[str, float]) -> Verdict:
    if not share:
        return None
    most = max(share, key=lambda code: (share[code], code == config.language))
    if most == config.language and share[most] >= config.min_share:
        return None
    return (
        "other_language",
        f"{share[config.language]:.0%} function words of {config.language}, {share[most]:.0%} of {most}",
    )


language = filter_stage(judge)
