"""Completion in bash, where click's takes an index of a device, P:D, for three words.

Readline breaks words at colons and at "=" (COMP_WORDBREAKS), and replaces only what stands behind the last of them.
"""

from __future__ import annotations

import os
from typing import Any

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

_SCRIPT = """\
%(complete_func)s() {
    local type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            plain) COMPREPLY+=("$value") ;;
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class Bash(BashComplete):
    """Takes the line up to the cursor as it stands; without it (COMP_LINE), words as click's script gives them."""

    source_template = _SCRIPT

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one at the cursor, and that one."""
        if "COMP_LINE" not in os.environ:
            return super().get_completion_args()
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        last = words.pop() if words and not line[-1].isspace() else ""
        return words[1:], last

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """The kind, and of what has to stand there in the end the part that bash puts in."""
        if item.type != "plain" or "COMP_LINE" not in os.environ:
            return super().format_completion(item)
        _, word = self.get_completion_args()
        option, equals, _ = word.partition("=") if word.startswith("--") else ("", "", "")
        whole = f"{option}={item.value}" if equals else item.value
        breaks = os.environ.get("COMP_WORDBREAKS", "")
        kept = max((place + 1 for place, letter in enumerate(word) if letter in breaks), default=0)
        return f"{item.type},{whole[kept:] if whole.startswith(word[:kept]) else item.value}"


def register() -> None:
    """Let click use it."""
    add_completion_class(Bash)
