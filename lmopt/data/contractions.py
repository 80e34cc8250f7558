"""Words of English that are cut in two or kept in one against the general rules: contractions, abbreviations, faces.

The forms are those of spaCy's English (`spacy/lang/en/tokenizer_exceptions.py` and the language-independent base, MIT
licence), of which they are a compact description: `parts` maps a form to its pieces.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

_NOT_CONTRACTED = {"ill", "its", "hell", "shell", "shed", "were", "well", "whore"}
"""Look like a pronoun with a clitic, and are words."""
_CLITICS = {
    "i": "'m m 'm|a m|a 'll ll 'll|'ve ll|ve 'd d 'd|'ve d|ve 've ve",
    "you we they": "'ll ll 'll|'ve ll|ve 'd d 'd|'ve d|ve 've ve 're re",
    "he she it": "'ll ll 'll|'ve ll|ve 'd d 'd|'ve d|ve 's s",
    "who what when where why how there": "'s s 'll ll 'll|'ve ll|ve 're re 've ve 'd d 'd|'ve d|ve",
    "that this": "'s s 'll ll 'll|'ve ll|ve 'd d 'd|'ve d|ve",
    "these those": "'ll ll 'll|'ve ll|ve 're re 've ve 'd d 'd|'ve d|ve",
    "ca could do does did had may might must need ought sha should wo would": "n't nt n't|'ve nt|ve",
    "could might must should would": "'ve ve",
    "ai are is was were have has dare": "n't nt",
    "not": "'ve ve",
}
_CUT = "can|not gon|na got|ta let|'s c'm|on"
_CUT_AS_WRITTEN = "y'|all y|all how|'d|'y How|'d|'y let|'s"
_KEPT = """
'S 's ‘S ‘s and/or w/o 're 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout ma'am Ma'am o'clock O'clock
lovin' Lovin' lovin Lovin havin' Havin' havin Havin doin' Doin' doin Doin goin' Goin' goin Goin nothin' Nothin' nothin
Nothin nuthin' Nuthin' nuthin Nuthin ol' Ol' ol Ol somethin' Somethin' somethin Somethin em 'em ll 'll nuff 'nuff
Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan.
Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. S.C.
Sep. Sept. Tenn. Va. Wash. Wis. 'd a.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc.
Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s.
\\t \\n — ' \\") <space> '' C++ a. b. c. d. e. f. g. h. i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z. ä. ö. ü.
"""
_FACES = r"""
:) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( :(( :-((
:((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0
:() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_;
-_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-)
(._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>
"""


@functools.cache
def parts() -> dict[str, tuple[str, ...]]:
    """Every form with the pieces it is cut into, one piece where it is kept whole."""
    found = {"".join(pieces): pieces for pieces in _all_pieces()}
    found = {form: pieces for form, pieces in found.items() if form.lower() not in _NOT_CONTRACTED}
    curly = {form.replace("'", "’"): tuple(p.replace("'", "’") for p in pieces) for form, pieces in found.items()}
    return curly | found


@functools.cache
def openings() -> frozenset[str]:
    """What a form can begin with, short of the whole."""
    return frozenset(form[:length] for form in parts() for length in range(1, len(form)))


def _all_pieces() -> Iterator[tuple[str, ...]]:
    for stems, clitics in _CLITICS.items():
        for stem in stems.split():
            for clitic in clitics.split():
                yield (stem, *clitic.split("|"))
                yield (stem.title(), *clitic.split("|"))
    for pieces in _CUT.split():
        first, second = pieces.split("|")
        yield (first, second)
        yield (first[0].upper() + first[1:], second)
    for pieces in _CUT_AS_WRITTEN.split():
        yield tuple(pieces.split("|"))
    for hour in range(1, 13):
        for half in ("a.m.", "am", "p.m.", "pm"):
            yield (str(hour), half)
    for scale in "cfkCFK":
        yield ("°", scale, ".")
    for kept in (*_KEPT.split(), *_FACES.split()):
        yield (kept,)
