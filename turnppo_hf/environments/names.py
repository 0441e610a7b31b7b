"""A name that does not exist and those that do go in, the question whether the nearest one was meant comes out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str], *, cutoff: float = 0.6, form: str = "{!r}") -> str:
    """
    Return " Did you mean 'max_turns'?", to follow a sentence, or "" where nothing is near.

    Args:
        name (`object`): What was written; upper and lower case count the same.
        known (`Iterable[str]`): What exists.
        cutoff (`float`, *optional*, defaults to 0.6): How near a name must be, as in `difflib.get_close_matches`.
        form (`str`, *optional*): How the nearest name is printed, such as "`--{}`".
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=cutoff)
    return f" Did you mean {form.format(by_lower_case[near[0]])}?" if near else ""
