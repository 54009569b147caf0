"""Completion in shells, beyond what click does.

Bash breaks words at colons and at "=" (COMP_WORDBREAKS) and replaces only what stands behind the last of them, so that
an index of a device, P:D, is three words to click's script. Zsh and fish replace the whole word, of which click gives
the end alone in `--option=value`; its script for fish ends values at a comma.
"""

from __future__ import annotations

import os
from typing import Any

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

_BASH = """\
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

_FISH = """\
function %(complete_func)s
    set -lx %(complete_var)s fish_complete
    set -lx COMP_WORDS (commandline -cp)
    set -lx COMP_CWORD (commandline -ct)
    for found in (%(prog_name)s 2>/dev/null)
        set -l told (string split -m 1 -- , $found)
        switch $told[1]
            case plain
                echo -- $told[2]
            case file
                __fish_complete_path $told[2]
            case dir
                __fish_complete_directories $told[2]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments '(%(complete_func)s)'
"""


class Bash(BashComplete):
    """Takes the line up to the cursor as it stands; without it (COMP_LINE), words as click's script gives them."""

    source_template = _BASH

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
        if "COMP_LINE" not in os.environ:
            return super().format_completion(item)
        word = self.get_completion_args()[1]
        whole = _whole(item, word)
        breaks = os.environ.get("COMP_WORDBREAKS", "")
        kept = max((place + 1 for place, letter in enumerate(word) if letter in breaks), default=0)
        return f"{whole.type},{whole.value[kept:] if whole.value.startswith(word[:kept]) else whole.value}"


class Zsh(ZshComplete):
    """Gives whole words, and their colons, which part them from their help; older versions of click do not."""

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Three lines, as click's script wants them: the kind, the word with the option before it, the help."""
        whole = _whole(item, self.get_completion_args()[1])
        value = whole.value.replace(":", "\\:") if whole.help else whole.value
        return f"{whole.type}\n{value}\n{whole.help or '_'}"


class Fish(FishComplete):
    """Gives whole words, commas included."""

    source_template = _FISH

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """As fish puts it in, with the option before it."""
        return super().format_completion(_whole(item, self.get_completion_args()[1]))


def _whole(item: CompletionItem[Any], word: str) -> CompletionItem[Any]:
    """What completes the word, of which click gives only what stands behind "="."""
    option, equals, _ = word.partition("=")
    if item.type != "plain" or not (equals and option.startswith("--")):
        return item
    return CompletionItem(f"{option}={item.value}", item.type, item.help)


def register() -> None:
    """Let click use them."""
    for shell in (Bash, Zsh, Fish):
        add_completion_class(shell)
