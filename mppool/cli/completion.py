"""`mppool completion SHELL`: what the shell needs to complete commands, options and names of managers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mppool.cli.failing import OK

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
_mppool() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} command="" each
  for each in "${{COMP_WORDS[@]:1:$((COMP_CWORD - 1))}}"; do
    case " {commands} " in *" $each "*) command=$each; break ;; esac
  done
  case $command in
    "") COMPREPLY=($(compgen -W "{commands}" -- "$word")) ;;
{cases}  esac
}}
complete -F _mppool mppool
"""

_CASE = '    {command}) COMPREPLY=($(compgen -W "{options}{names}" -- "$word")) ;;\n'

# A zsh that nobody has configured has no `compdef` yet, which bashcompinit needs.
_ZSH = """\
(( $+functions[compdef] )) || { autoload -U +X compinit && compinit -i -D; }
autoload -U +X bashcompinit && bashcompinit
"""

_NAMES = " $(mppool list --names 2>/dev/null)"


def completion(options: argparse.Namespace) -> int:
    """The script, for `source` or `eval`."""
    print(script(options.shell, options.commands), end="")
    return OK


def script(shell: str, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """The script for one shell."""
    known = {name: _options(parser) for name, parser in commands.items()}
    named = {name for name, parser in commands.items() if _takes_name(parser)}
    if shell == "fish":
        return _fish(known, named)
    cases = "".join(
        _CASE.format(command=name, options=" ".join(options), names=_NAMES if name in named else "")
        for name, options in known.items()
    )
    bash = _BASH.format(commands=" ".join(known), cases=cases)
    return f"{_ZSH}{bash}" if shell == "zsh" else bash


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [
        option
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


def _takes_name(parser: argparse.ArgumentParser) -> bool:
    return any(action.metavar == "NAME" for action in parser._actions)


def _fish(known: Mapping[str, Sequence[str]], named: set[str]) -> str:
    lines = ["complete -c mppool -f"]
    for name, options in known.items():
        lines.append(f"complete -c mppool -n __fish_use_subcommand -a {name}")
        used = f"'__fish_seen_subcommand_from {name}'"
        lines += [f"complete -c mppool -n {used} -l {option[2:]}" for option in options]
        if name in named:
            lines.append(f"complete -c mppool -n {used} -a '(mppool list --names 2>/dev/null)'")
    return "\n".join(lines) + "\n"
