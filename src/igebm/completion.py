"""What `igebm completion` prints: a script that completes commands, flags and their values in bash, zsh or fish.

All words stand in the script, so that no Python starts at a press of the tab key. Files are left to the shell.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import tyro

from .presets import flag

POSITIONAL = get_args(tyro.conf.Positional[int])[1]


class Known(NamedTuple):
    """What a command takes: its flags, each with its values (None: any, a switch: no tuple at all but the flag alone),
    and the words that may stand without a flag."""

    flags: Mapping[str, tuple[str, ...] | None]
    switches: Sequence[str]
    words: Sequence[str] = ()


def known(*kinds: Any, words: Sequence[str] = ()) -> Known:
    """Of a command whose options are these dataclasses."""
    found = dict(pair for kind in kinds for pair in options(kind))
    switches = [f"--{no}{name[2:]}" for name, value in found.items() if value is bool for no in ("", "no-")]
    flags = {name: value for name, value in found.items() if value is not bool}
    return Known(flags, ["--help", *switches], words)


def options(kind: Any) -> Iterator[tuple[str, Any]]:
    """Each flag with its values: a tuple, bool for a switch, or None for anything."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, markers = hints[field.name], ()
        if get_origin(hint) is Annotated:
            hint, *markers = get_args(hint)
        choices = next((part for part in (hint, *get_args(hint)) if get_origin(part) is Literal), None)
        if dataclasses.is_dataclass(hint):
            yield from options(hint)
        elif POSITIONAL not in markers and not isinstance(hint, TypeVar):
            yield flag(field.name), bool if hint is bool else choices and tuple(map(str, get_args(choices)))


def script(shell: str, commands: Mapping[str, Known], helps: Mapping[str, str]) -> str:
    """The script for `shell` (bash, zsh or fish); a command of two words, "eval ood", is one."""
    return fish(commands, helps) if shell == "fish" else bash(commands, shell == "zsh")


def groups(commands: Mapping[str, Known]) -> dict[str, list[str]]:
    """The first words of commands of two, each with the second ones."""
    pairs = [name.split() for name in commands if " " in name]
    return {first: [b for a, b in pairs if a == first] for first, _ in pairs}


def bash(commands: Mapping[str, Known], zsh: bool) -> str:
    several, firsts = groups(commands), list(dict.fromkeys(name.split()[0] for name in commands))
    values, free, rest = [], [], []
    for name, takes in commands.items():
        values += [f'    "{name} {f}") words="{" ".join(v)}" ;;' for f, v in takes.flags.items() if v]
        free += [f'"{name} {f}"' for f, v in takes.flags.items() if not v]
        rest.append(f'        "{name} -"*) words="{" ".join([*takes.flags, *takes.switches])}" ;;')
        rest += [f'        "{name} "*) words="{" ".join(takes.words)}" ;;'] if takes.words else []
    seconds = [f'      {first}) words="{" ".join(words)}" ;;' for first, words in several.items()]
    lines = (
        ["autoload -Uz compinit bashcompinit", "(( $+functions[compdef] )) || compinit", "bashcompinit"] if zsh else []
    )
    lines += [
        "_igebm() {",
        '  local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}"',
        '  local name="${COMP_WORDS[1]}" words="" at=1',
        f'  case "$name" in {"|".join(several)}) at=2 ;; esac',
        "  if (( COMP_CWORD == 1 )); then",
        f'    words="{" ".join([*firsts, "--help", "--version"])}"',
        "  elif (( COMP_CWORD == at )); then",
        '    case "$name" in',
        *seconds,
        "    esac",
        "  else",
        '    (( at == 2 )) && name="$name ${COMP_WORDS[2]}"',
        '    case "$name $prev" in',
        *values,
        f"    {'|'.join(free)}) ;;",
        "    *)",
        '      case "$name $cur" in',
        *rest,
        "      esac ;;",
        "    esac",
        "  fi",
        "  COMPREPLY=()",
        '  for name in $words; do case "$name" in "$cur"*) COMPREPLY+=("$name") ;; esac; done',
        "}",
        "complete -o default -F _igebm igebm",
    ]
    return "\n".join(lines)


def fish(commands: Mapping[str, Known], helps: Mapping[str, str]) -> str:
    quoted = lambda text: "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    lines = [
        "function __igebm_at # whether the command line begins with these words",
        '    set -l said (commandline -opc); string match -q -- "$argv *" "$said "',
        "end",
        "function __igebm_is # whether these are all",
        '    set -l said (commandline -opc); test "$said" = "$argv"',
        "end",
        "complete -c igebm -e",
    ]
    for name in dict.fromkeys(name.split()[0] for name in commands):
        said = f" -d {quoted(helps[name])}" if name in helps else ""
        lines.append(f"complete -c igebm -f -n '__igebm_is igebm' -a {name}{said}")
    for first, seconds in groups(commands).items():
        lines.append(f"complete -c igebm -f -n '__igebm_is igebm {first}' -a {quoted(' '.join(seconds))}")
    for name, takes in commands.items():
        at = f"complete -c igebm -n '__igebm_at igebm {name}'"
        lines += [f"{at} -l {f[2:]} " + (f"-x -a {quoted(' '.join(v))}" if v else "-r") for f, v in takes.flags.items()]
        lines += [f"{at} -l {switch[2:]}" for switch in takes.switches]
        lines += [f"{at} -a {quoted(' '.join(takes.words))}"] if takes.words else []
    return "\n".join(lines)
