"""Completion at the tab key, asked of the shells themselves; and the words it knows against those of the parser."""

import re
import shutil
import subprocess

import pytest

from igebm import presets, pretrained
from igebm.cli import COMMANDS, main
from igebm.evaluation.settings import EXPERIMENTS

ASKED = {
    "igebm tr": ["train"],
    "igebm d": ["data"],
    "igebm ba": ["baseline"],
    "igebm data ": ["check", "list"],
    "igebm eval o": ["ood"],
    "igebm train --net": ["--network"],
    "igebm train --network t": ["trajectory"],
    "igebm train --steps 5 --sampler ": ["langevin", "mppi"],
    "igebm train digi": ["digits"],
    "igebm train balls": [name for name in presets.PRESETS if name.startswith("balls")],
    "igebm train --no-f": ["--no-flip"],
    "igebm eval ood --score m": ["min-label"],
    "igebm eval ood dig": ["digits"],
    "igebm sample --init b": ["buffer"],
    "igebm data check dsprites-r": ["dsprites-rotation"],
    "igebm data check --skip": ["--skip-bad"],
    "igebm completion f": ["fish"],
}
"""what is typed, and what may follow"""

BASH = 'COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); _igebm; printf "%s\\n" "${COMPREPLY[@]}"'
ZSH = "emulate -L sh; setopt kshglob noshglob braceexpand nounset;"  # as bashcompinit calls such a function


def script(shell: str, capsys) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def answer(shell: str, text: str, typed: str) -> list[str]:
    """What a shell offers after `typed`."""
    words = " ".join(f"'{word}'" for word in typed.split(" "))
    line = {
        "bash": f"COMP_WORDS=({words}); {BASH}",
        "zsh": f"f() {{ {ZSH} COMP_WORDS=({words}); {BASH} }}; f",
        "fish": f"complete -C '{typed}'",
    }[shell]
    run = [shell, "-f", "-c"] if shell == "zsh" else [shell, "-c"]
    done = subprocess.run([*run, f"{text}\n{line}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return sorted(found.split("\t")[0] for found in done.stdout.split("\n") if found)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_flags_and_values(shell, capsys, tmp_path, monkeypatch):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    monkeypatch.chdir(tmp_path)  # no file's name among the answers
    monkeypatch.setenv("HOME", str(tmp_path))
    text = script(shell, capsys)
    for typed, wanted in ASKED.items():
        assert answer(shell, text, typed) == sorted(wanted), typed


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_where_any_value_is_possible_bash_is_left_to_offer_files(capsys):
    text = script("bash", capsys)
    assert answer("bash", text, "igebm train --out r") == [] and "complete -o default -F _igebm igebm" in text


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "eval"] + [f"eval {name}" for name in EXPERIMENTS])
def test_the_flags_are_those_that_help_shows(command, capsys):
    text = script("bash", capsys)
    offered = re.search(rf'"{command} -"\*\) words="([^"]*)"', text)
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    shown = re.findall(r"^[│ ]*(?:-h, )?(--[a-z][a-z0-9-]*)(?:, (--[a-z][a-z0-9-]*))?", capsys.readouterr().out, re.M)
    assert offered is not None and set(offered[1].split()) == {flag for both in shown for flag in both if flag}


def test_every_command_and_model_is_offered(capsys):
    first = script("bash", capsys).split('words="', 2)[2].split('"')[0].split()
    assert set(first) == {name.split()[0] for name in COMMANDS} | {"--help", "--version"}
    assert set(pretrained.names()) <= set(script("fish", capsys).replace("'", " ").split())
