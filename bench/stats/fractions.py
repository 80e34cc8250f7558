"""Two-level factorial designs: which combinations of factors to run, and what each effect is mixed up with.

A full design runs all 2^k combinations. A fraction runs 2^(k-p) of them: the first k - p factors take every combination
and each further one is set by a *generator*, the product of some of the first (levels are -1 and +1). What is saved is
paid for in aliases: effects whose columns are equal cannot be told apart. The *resolution* is the length of the
shortest word of the defining relation: at III main effects are mixed with two-factor interactions, at IV those with
each other, at V with three-factor interactions only (Box & Hunter 1961, Technometrics 3:311 and 449).

Factors are numbers 0, 1, ...; an effect is the set of the factors in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Effect = frozenset[int]
"""The factors of an effect: one is a main effect, two an interaction."""

GENERATORS: dict[tuple[int, int], tuple[str, ...]] = {
    (3, 1): ("C=AB",),
    (4, 1): ("D=ABC",),
    (5, 1): ("E=ABCD",),
    (5, 2): ("D=AB", "E=AC"),
    (6, 1): ("F=ABCDE",),
    (6, 2): ("E=ABC", "F=BCD"),
    (6, 3): ("D=AB", "E=AC", "F=BC"),
    (7, 1): ("G=ABCDEF",),
    (7, 2): ("F=ABCD", "G=ABDE"),
    (7, 3): ("E=ABC", "F=BCD", "G=ACD"),
    (7, 4): ("D=AB", "E=AC", "F=BC", "G=ABC"),
    (8, 2): ("G=ABCD", "H=ABEF"),
    (8, 3): ("F=ABC", "G=ABD", "H=BCDE"),
    (8, 4): ("E=BCD", "F=ACD", "G=ABC", "H=ABD"),
}
"""(factors, p) -> generators. Montgomery, Design and Analysis of Experiments (8th ed.), table 8.14; the same designs
are in the NIST/SEMATECH e-Handbook of Statistical Methods, section 5.3.3.4.7."""
MAX_FACTORS = 8
"""Beyond these the table has no entry."""


@dataclass(frozen=True, slots=True)
class Fraction:
    """A two-level design of `factors` factors in 2^(factors - p) runs."""

    factors: int
    generators: tuple[str, ...]
    """Empty for a full design."""

    @property
    def runs(self) -> tuple[Effect, ...]:
        """Each run as the set of factors that are on, in standard order (the first factor changes fastest)."""
        basic = self.factors - len(self.generators)
        found: list[Effect] = []
        for levels in itertools.product((-1, 1), repeat=basic):
            level: dict[int, int] = dict(enumerate(reversed(levels)))
            for generator in self.generators:
                made, product = _parse(generator)
                level[made] = _sign(level, product)
            found.append(frozenset(factor for factor, value in level.items() if value == 1))
        return tuple(found)

    @property
    def words(self) -> tuple[Effect, ...]:
        """The defining relation: every set of factors whose product is +1 in all runs."""
        single = [frozenset({made}) | product for made, product in map(_parse, self.generators)]
        found: list[Effect] = []
        for size in range(1, len(single) + 1):
            for some in itertools.combinations(single, size):
                word: Effect = frozenset()
                for one in some:
                    word ^= one
                found.append(word)
        return tuple(found)

    @property
    def resolution(self) -> int | None:
        """Length of the shortest word; None for a full design, where nothing is mixed."""
        return min(map(len, self.words), default=None)

    def aliases(self, effect: Effect) -> tuple[Effect, ...]:
        """What cannot be told from an effect, the shortest first. The empty set is the mean."""
        return tuple(sorted((effect ^ word for word in self.words), key=lambda other: (len(other), sorted(other))))

    def effects(self, most: int = 2) -> Iterator[tuple[Effect, ...]]:
        """Groups of main effects and interactions of up to `most` factors that share a column, each group once."""
        seen: set[Effect] = set()
        for size in range(1, most + 1):
            for chosen in itertools.combinations(range(self.factors), size):
                effect = frozenset(chosen)
                if effect in seen:
                    continue
                mixed = tuple(other for other in self.aliases(effect) if 0 < len(other) <= most)
                seen |= {effect, *mixed}
                yield (effect, *mixed)


def full(factors: int) -> Fraction:
    """All combinations."""
    return Fraction(factors, ())


def fraction(factors: int, resolution: int) -> Fraction | None:
    """The smallest design of at least this resolution; the full one where no fraction is; None beyond the table."""
    if factors > MAX_FACTORS:
        return None
    found = [Fraction(factors, names) for (k, _), names in GENERATORS.items() if k == factors]
    able = [one for one in found if (one.resolution or 0) >= resolution]
    return min(able, key=lambda one: len(one.runs), default=full(factors))


def sign(run: Effect, effect: Effect) -> int:
    """Level (-1 or +1) of an effect's column in a run: the product of its factors' levels."""
    return -1 if len(effect - run) % 2 else 1


def _parse(generator: str) -> tuple[int, Effect]:
    """`D=ABC` -> 3 and {0, 1, 2}."""
    made, _, product = generator.partition("=")
    return ord(made) - ord("A"), frozenset(ord(letter) - ord("A") for letter in product)


def _sign(level: dict[int, int], product: Effect) -> int:
    value = 1
    for factor in product:
        value *= level[factor]
    return value


def named(effect: Effect, names: Sequence[str]) -> str:
    """`clean x moe`, with the sign of multiplication."""
    return " \u00d7 ".join(names[factor] for factor in sorted(effect))
