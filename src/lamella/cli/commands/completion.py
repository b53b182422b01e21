"""`lamella completion`: the script that completes the command line in a shell, and the words that the script asks for.

Nothing is opened, asked for or sent: names come from the configuration and from what `list` and `status` saw last.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence

from lamella.base.errors import LamellaError
from lamella.cli.arguments import CommandParser, build
from lamella.cli.context import Context
from lamella.cli.known_names import known

FILES = ":files"
"""Instead of words: let the shell complete a file."""
_DATES = ("latest", "today", "yesterday")

_SCRIPTS = {
    "bash": """\
# eval "$(lamella completion bash)", or into /usr/share/bash-completion/completions/lamella
_lamella() {
    local line=${COMP_LINE:0:COMP_POINT} current prefix IFS=$' \\t\\n' words found
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[-1]}
    prefix=${current%"${current##*[:=]}"}
    [[ $current == *@* ]] && prefix=${current%@*}
    IFS=$'\\n'
    found=($(lamella completion bash -- "${words[@]}" 2> /dev/null))
    if [[ ${found[0]} == :files ]]; then compopt -o default; COMPREPLY=(); return; fi
    # For the shell a word ends after : and =, and begins anew with @.
    COMPREPLY=("${found[@]#"$prefix"}")
    [[ ${#found[@]} == 1 && ${found[0]} == *@ ]] && compopt -o nospace
}
complete -F _lamella lamella
""",
    "zsh": """\
#compdef lamella
# eval "$(lamella completion zsh)", or into a directory of $fpath as _lamella
_lamella() {
    local -a found
    found=("${(@f)$(lamella completion zsh -- "${(@)words[1,CURRENT-1]}" "$PREFIX" 2> /dev/null)}")
    if [[ $found[1] == :files ]]; then _files; return; fi
    found=("${(@)found:#}")
    compadd -a found
}
if [[ $funcstack[1] == _lamella ]]; then _lamella "$@"; else compdef _lamella lamella; fi
""",
    "fish": """\
# lamella completion fish | source, or into ~/.config/fish/completions/lamella.fish
function __lamella_complete
    set -l found (lamella completion fish -- (commandline -opc) (commandline -ct) 2> /dev/null)
    if test "$found[1]" = :files
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c lamella -f -a '(__lamella_complete)'
""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("shell", choices=tuple(_SCRIPTS), help="print the script for this shell")
    # For the scripts: the words of the line up to the cursor; the last one is to be completed, and may be empty.
    parser.add_argument("words", nargs="*", default=[], help=argparse.SUPPRESS)


def run(context: Context) -> int:
    """Print the script, or the words that fit."""
    if not context.args.words:
        print(_SCRIPTS[context.args.shell], end="")
        return 0
    *before, current = context.args.words
    for word in _fitting(context, before[1:], current):
        context.out.answer(word)
    return 0


def _fitting(context: Context, before: Sequence[str], current: str) -> list[str]:
    try:
        found = set(_Line(context, before).candidates(current))
    except LamellaError:  # the configuration is wrong, or no repository is named: not the moment to say so
        return []
    words = sorted(word for word in found - {FILES} if word.startswith(current))
    return words or sorted(found & {FILES})


class _Line:
    """The words before the cursor, without the program: read as far as the tree of commands explains them."""

    def __init__(self, context: Context, before: Sequence[str]) -> None:
        self._context = context
        self.parser = build()
        self.parser.fill()
        self.positionals = 0
        self.pending: argparse.Action | None = None
        """The option that waits for its value."""
        self.only_words = False
        for word in before:
            self._take(word)

    def _take(self, word: str) -> None:
        if self.pending is not None:
            if "--repo" in self.pending.option_strings:
                self._context.args.repo = word
            self.pending = None
        elif word == "--" and not self.only_words:
            self.only_words = True
        elif word.startswith("-") and not self.only_words:
            self._take_option(word)
        elif (below := self._commands()) is not None:
            if word in below:
                self.parser = below[word]
                self.parser.fill()
        else:
            self.positionals += 1

    def _take_option(self, word: str) -> None:
        name, equals, value = word.partition("=")
        option = self.parser._option_string_actions.get(name)
        if option is None or option.nargs == 0:
            return
        if equals:
            self.pending = option
            self._take(value)
        else:
            self.pending = option

    def _commands(self) -> dict[str, CommandParser] | None:
        for action in self.parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                return action.choices
        return None

    # -- what may follow ----------------------------------------------------------------------------------------------

    def candidates(self, current: str) -> Iterable[str]:
        """Words that may stand here, whether or not they begin as the current one does."""
        if self.pending is not None:
            return self._values(self.pending, current)
        if current.startswith("-") and not self.only_words:
            return self._options()
        below = self._commands()
        if below is not None:
            return below
        places = [action for action in self.parser._actions if not action.option_strings]
        visible = [action for action in places if action.help != argparse.SUPPRESS]
        if not visible:
            return ()
        action = visible[min(self.positionals, len(visible) - 1)]
        if self.positionals >= len(visible) and action.nargs not in ("*", "+"):
            return ()
        return self._values(action, current)

    def _options(self) -> Iterator[str]:
        for action in self.parser._actions:
            if action.help != argparse.SUPPRESS:
                yield from (name for name in action.option_strings if name.startswith("--"))

    def _values(self, action: argparse.Action, current: str) -> Iterable[str]:
        """Values of an option or a positional, by its choices or by what its help calls it."""
        if action.choices is not None:
            return [str(one) for one in action.choices]
        word = str(action.metavar or action.dest).upper()
        if "--repo" in action.option_strings or word == "REPO":
            return [*self._configured(), FILES]
        if word.startswith("PROFILE"):
            return self._context.config.profiles
        if word.startswith(("VOLUME", "SNAPSHOT")):
            return self._volumes(current)
        return [FILES]

    def _configured(self) -> list[str]:
        """Names of repositories; without them a file or directory may still be one."""
        try:
            return list(self._context.config.repositories)
        except LamellaError:
            return []

    def _volumes(self, current: str) -> list[str]:
        names = known(self._context.host.cache_dir, self._context.place)
        volume, at, _ = current.partition("@")
        if not at:
            return [f"{name}@" if name == current else name for name in names]
        return [f"{volume}@{one}" for one in (*_DATES, *names.get(volume, ()))]
