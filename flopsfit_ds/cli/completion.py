"""`completion`: a script by which a shell completes commands and options; it starts no Python while one types."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Shell = Literal["bash", "zsh", "fish"]

_BASH = """\
_flopsfit_ds() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands} --version --help"
  else
    case "$command" in
{cases}
    esac
  fi
  COMPREPLY=()
  case "$word" in -*) ;; *) [ "$COMP_CWORD" -eq 1 ] || COMPREPLY=($(compgen -f -- "$word")) ;; esac
  COMPREPLY+=($(compgen -W "$words" -- "$word"))
}}
complete -o filenames -F _flopsfit_ds flopsfit-ds
"""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def completion(  # pyright: ignore[reportUnusedFunction]
        shell: Annotated[Shell, typer.Argument(help="Your shell.")] = "bash",
    ) -> None:
        """Print what makes a shell complete commands, options, shipped specs and file names.

        Example: flopsfit-ds completion bash >> ~/.bashrc
        """
        print(script(shell), end="")


def script(shell: Shell) -> str:
    """The script for one shell, made from the commands as they are."""
    from flopsfit_ds.base.presets import shipped_specs
    from flopsfit_ds.cli.main import build_app

    group = typer.main.get_command(build_app())
    commands: dict[str, tuple[str, list[str]]] = {}
    for name, command in getattr(group, "commands").items():  # noqa: B009  (of a group alone)
        options = [flag for each in command.params for flag in each.opts if flag.startswith("--")]
        takes_spec = any("SPEC" in str(each.metavar) for each in command.params)
        words = [*options, "--help", *(shipped_specs() if takes_spec else ())]
        commands[name] = (command.get_short_help_str(70), words)
    if shell == "fish":
        return _fish(commands)
    cases = "\n".join(f'      {name}) words="{" ".join(words)}" ;;' for name, (_, words) in commands.items())
    text = _BASH.format(commands=" ".join(commands), cases=cases)
    return text if shell == "bash" else f"autoload -Uz compinit bashcompinit && compinit && bashcompinit\n{text}"


def _fish(commands: dict[str, tuple[str, list[str]]]) -> str:
    lines = []
    for name, (told, words) in commands.items():
        quoted = told.replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"complete -c flopsfit-ds -n __fish_use_subcommand -f -a {name} -d '{quoted}'")
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        for word in words:
            how = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c flopsfit-ds {seen} {how}")
    return "\n".join(lines) + "\n"
