"""How names and UUIDs are compared."""

import unicodedata
from functools import lru_cache


def device_key(device_uuid: str) -> str:
    """How a UUID is looked up: the tables' collation ignores case, and so do we."""
    return device_uuid.casefold()


@lru_cache(maxsize=4096)
def plain_name(text: str) -> str:
    """How names are compared: Unicode NFKC, case folded, without white space and invisible marks.

    Empty for a name that shows nothing; such a name matches nothing.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(
        character
        for character in folded
        # Cf: zero-width spaces and joiners, direction marks, the byte order mark.
        if not character.isspace() and unicodedata.category(character) not in ("Cf", "Cc")
    )
