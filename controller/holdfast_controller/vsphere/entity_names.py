"""Names of vSphere's entities: plain for people and in all our own tables, escaped on the wire.

vSphere escapes a slash, a backslash and a percent sign in every name that it tells, and takes any escape
sequence in a name that it is given for its character. So what comes in is unescaped, and what goes out escaped.
"""

from __future__ import annotations

import re
from typing import Final

from holdfast_common.errors import UsageError

NAME_CHARACTERS_MAX: Final = 80  # of a VM, as vSphere stores it: escaped
FILE_NAME_BYTES_MAX: Final = 80  # with the endings that vSphere appends far below what VMFS takes
_ESCAPED: Final = (("%", "%25"), ("/", "%2f"), ("\\", "%5c"))  # the percent sign first
_PLAIN: Final = {"%25": "%", "%2f": "/", "%5c": "\\"}
_SEQUENCE: Final = re.compile("%25|%2f|%5c", re.IGNORECASE)
_KEPT_IN_FILE_NAMES: Final = " -_.()"


def plain_name(told: str) -> str:
    """A name as people know it, from what vSphere tells."""
    return _SEQUENCE.sub(lambda found: _PLAIN[found[0].lower()], told)


def escaped_name(plain: str) -> str:
    """A name as vSphere is given it, so that it means these characters and no others."""
    for character, sequence in _ESCAPED:
        plain = plain.replace(character, sequence)
    return plain


def check_new_name(plain: str) -> None:
    """Whether a new VM can have this name and show it unchanged. Raises: UsageError."""
    length = len(escaped_name(plain))
    if not plain.strip():
        problem = "a VM's name cannot be empty"
    elif plain != plain.strip():
        problem = "a VM's name cannot begin or end with a blank"
    elif not plain.isprintable():
        problem = "a VM's name cannot hold line breaks or other control characters"
    elif length > NAME_CHARACTERS_MAX:
        problem = (
            f"a VM's name can have {NAME_CHARACTERS_MAX} characters, and this has {length}"
            " (a slash, a backslash and a percent sign count as three)"
        )
    else:
        return
    raise UsageError(problem, name=plain, advice="choose another --name")


def file_name_of(plain: str) -> str:
    """A VM's name as one of a file: what file systems and ``[datastore] path`` cannot hold is replaced."""
    kept = "".join(c if c.isalnum() or c in _KEPT_IN_FILE_NAMES else "_" for c in plain)
    cut = kept.strip(" .").encode()[:FILE_NAME_BYTES_MAX].decode(errors="ignore")
    return cut.strip(" .") or "vm"
