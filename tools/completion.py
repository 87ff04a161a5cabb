"""Completion of all commands' flags and values, as a script for bash and zsh.

    source <(shardline completion bash)      # in ~/.bashrc
    source <(shardline completion zsh)       # in ~/.zshrc, after compinit

The script holds the names, so that nothing of ours is started at a press of the key.
"""

from __future__ import annotations

import shlex

from shardline.pipeline.command_help import FLAGS_OF_EVERY_COMMAND
from shardline.pipeline.commands import COMMANDS, Command
from shardline.pipeline.errors import UsageError
from shardline.pipeline.options import options

SHELLS = ("bash", "zsh")


def completion(shell: str) -> str:
    """The script for a shell. Raises UsageError for another one."""
    if shell not in SHELLS:
        raise UsageError(f"{shell or 'completion'}: name the shell, {' or '.join(SHELLS)}: shardline completion bash")
    lines = ["autoload -U +X bashcompinit && bashcompinit"] if shell == "zsh" else []
    lines += ["_shardline_words() {", '  case "$1" in']
    for name, command in COMMANDS.items():
        lines += [f"    {pattern}) echo {shlex.quote(' '.join(words))} ;;" for pattern, words in _words(name, command)]
    lines += ["  esac", "}", _COMPLETE.strip()]
    scripts = " ".join(f"shardline-{name}" for name in COMMANDS)
    nospace = "-o nospace " if shell == "zsh" else ""  # bash is told by compopt, word by word
    return "\n".join([*lines, f"complete {nospace}-o default -o bashdefault -F _shardline shardline {scripts}"])


def _words(name: str, command: Command) -> list[tuple[str, list[str]]]:
    """What may stand after a command, and after each of its flags that has choices."""
    fields = options(command.config_class())
    flags = [field for field in fields.values() if field.option.flag]
    names = [f"--{field.name}" + ("" if field.kind is bool else "=") for field in flags]
    names += [f"--no{field.name}" for field in flags if field.kind is bool]
    names += [f"--{flag}" + ("=" if flag in ("config", "verbosity") else "") for flag in FLAGS_OF_EVERY_COMMAND]
    choices = [(f"{name}:--{f.name}", [c for c in f.option.choices if c]) for f in flags if f.option.choices]
    return [(name, names), *choices]


# bash cuts words at "=", zsh does not: `--head=g` is three words there and one here.
_COMPLETE = """
_shardline() {
  local command=${COMP_WORDS[0]##*/shardline-} word=${COMP_WORDS[COMP_CWORD]} flag= before=
  command=${command#shardline-}
  if [[ ${COMP_WORDS[0]##*/} == shardline ]]; then
    if [[ $COMP_CWORD == 1 ]]; then
      COMPREPLY=($(compgen -W "COMMANDS" -- "$word"))
      _shardline_spaces
      return
    fi
    command=${COMP_WORDS[1]}
    if [[ $command == completion ]]; then
      COMPREPLY=($(compgen -W "SHELLS" -- "$word"))
      _shardline_spaces
      return
    fi
  fi
  if [[ $word == = ]]; then
    flag=${COMP_WORDS[COMP_CWORD-1]} word=
  elif [[ ${COMP_WORDS[COMP_CWORD-1]} == = ]]; then
    flag=${COMP_WORDS[COMP_CWORD-2]}
  elif [[ $word == --*=* ]]; then
    flag=${word%%=*} before=${word%%=*}= word=${word#*=}
  elif [[ ${COMP_WORDS[COMP_CWORD-1]} == --* && $word != -* ]]; then
    flag=${COMP_WORDS[COMP_CWORD-1]}
  fi
  COMPREPLY=()
  if [[ -n $flag ]]; then
    COMPREPLY=($(compgen -P "$before" -W "$(_shardline_words "$command:$flag")" -- "$word"))
  elif [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$(_shardline_words "$command")" -- "$word"))
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2> /dev/null
  fi
  _shardline_spaces
}
# In zsh, no word gets a space after it by itself: `--port=` must not.
_shardline_spaces() {
  [[ -n ${ZSH_VERSION-} ]] || return 0
  local each spaced=()
  for each in "${COMPREPLY[@]}"; do
    [[ -z $each || $each == *= ]] || each="$each "
    spaced+=("$each")
  done
  COMPREPLY=("${spaced[@]}")
}
""".replace("COMMANDS", " ".join([*COMMANDS, "completion"])).replace("SHELLS", " ".join(SHELLS))
