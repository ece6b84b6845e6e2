"""Complete the command s4nd in a shell: commands, configurations, options and their values.

    bash   s4nd completion bash > ~/.local/share/bash-completion/completions/s4nd
    zsh    s4nd completion zsh > ~/.zfunc/_s4nd       (with fpath+=~/.zfunc before compinit)

The script holds all names, so that completing starts no Python: write it again after an update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import OmegaConf

from s4nd.tasks import task_class, task_names
from s4nd.train import find_config, shipped_configs
from s4nd.training.config import RunConfig
from s4nd.weights import shipped_names

__all__ = ['SHELLS', 'main', 'script', 'words_of']

# Read by bash and zsh. `_s4nd_words GROUP` prints the words of a command or of a task: its options as `name=`, and
# `name=value` for values that are known. `_s4nd_complete WORD BEFORE…` prints what WORD may become, one per line.
_COMMON = r"""
_s4nd_words() {
    case $1 in
@WORDS@
    esac
}

_s4nd_complete() {
    [ -z "${ZSH_VERSION-}" ] || emulate -L sh
    local current="$1" group="${2-commands}" last='' task='' cut='' dashes='' word IFS=$' \t\n'
    [ $# -lt 2 ] || shift
    for word in "$@"; do
        last=$word
        case $word in
            task=*) task=${word#task=} ;;
@CONFIGURATIONS@
            *.yaml) [ ! -f "$word" ] || task=$(sed -n 's/^task: *//p' "$word") && task=${task:-image} ;;
        esac
    done
    [ "$group" != train ] || group=${task:-train}
    case $last in
        *=*) ;;
        --?*) cut=${last#--}= current=${last#--}=$current ;;
    esac
    case $current in --*) dashes=-- current=${current#--} ;; esac
    for word in $(_s4nd_words "$group"); do
        case $word in "$current"*) ;; *) continue ;; esac
        case $current,$word in
            *=*,*=) ;;
            *=*,*) printf '%s\n' "$dashes${word#"$cut"}" ;;
            *,*=?*) ;;
            *) printf '%s\n' "$dashes$word" ;;
        esac
    done
}
"""

_BASH = r"""# Completion of s4nd in bash, from `s4nd completion bash`.
@COMMON@
_s4nd() {
    local line=${COMP_LINE:0:COMP_POINT} word IFS=$'\n'
    local -a before
    word=${line##*[[:space:]]}
    IFS=$' \t' read -ra before <<<"${line%"$word"}"
    COMPREPLY=($(_s4nd_complete "$word" "${before[@]:1}"))
    local value=${word#*=}
    [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -P "${word%"$value"}" -f -- "$value"))
    # Bash begins a new word at each =, unless it is told otherwise.
    [[ $COMP_WORDBREAKS != *=* || $word != *=* ]] || COMPREPLY=("${COMPREPLY[@]#*=}")
    [[ ${#COMPREPLY[@]} -gt 1 || ${COMPREPLY[0]-} == *[=/] ]] || COMPREPLY=("${COMPREPLY[@]/%/ }")
}
complete -o nospace -F _s4nd s4nd
"""

_ZSH = r"""#compdef s4nd
# Completion of s4nd in zsh, from `s4nd completion zsh`.
@COMMON@
_s4nd() {
    local -a found open closed
    found=(${(f)"$(_s4nd_complete "$PREFIX" "${(@)words[2,CURRENT-1]}")"})
    open=(${(M)found:#*=})
    closed=(${found:#*=})
    compadd -S '' -a open
    compadd -a closed
    (( $#found )) || { compset -P '*='; _files }
}
[ "${funcstack[1]-}" = _s4nd ] && _s4nd "$@" || compdef _s4nd s4nd
"""

SHELLS = {'bash': _BASH, 'zsh': _ZSH}


def main(arguments: Sequence[str]) -> None:
    """Print the script for the shell that `arguments` name."""
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise ValueError(f'expected one shell of {", ".join(SHELLS)}, got {" ".join(arguments) or "none"}')
    print(script(arguments[0]), end='')


@cache
def script(shell: str) -> str:
    """The completion script for 'bash' or 'zsh'."""
    from s4nd.cli import command_names, command_options

    configs = {name: _task_of(find_config(name)) for name in shipped_configs()}
    tasks = {name: list(words_of(task_class(name).Config)) for name in task_names()}
    every = dict.fromkeys(word for words in tasks.values() for word in words)
    groups = {
        'commands': command_names(),
        'train': [*configs, *words_of(RunConfig)],
        'evaluate': [*dict.fromkeys(word.removeprefix('eval.') for word in every)],
        'completion': list(SHELLS),
        **{name: list(words_of(schema)) for name, schema in command_options().items()},
        **tasks,
    }
    lines = [f"        {name}) echo '{' '.join(words)}' ;;" for name, words in groups.items()]
    cases = [f'            {name}) task={task} ;;' for name, task in configs.items()]
    common = _COMMON.replace('@WORDS@', '\n'.join(lines)).replace('@CONFIGURATIONS@', '\n'.join(cases))
    return SHELLS[shell].replace('@COMMON@', common)


def _task_of(config: Path) -> str:
    content: Any = OmegaConf.load(config)
    return content.get('task', 'image')


def words_of(schema: type, prefix: str = '') -> Iterator[str]:
    """`name=` for each option of a schema, and `name=value` for each value of those whose values are known."""
    known: dict[str, list[str]] = {
        'task': task_names(),
        'checkpoint': shipped_names(),
        'device': ['auto', 'cpu', 'cuda', 'mps'],
    }
    hints: dict[str, Any] = get_type_hints(schema)
    for item in fields(schema):
        hint, name = hints[item.name], prefix + item.name
        if is_dataclass(hint):
            yield from words_of(hint, f'{name}.')  # type: ignore[arg-type]
            continue
        values: Sequence[str] = item.metadata.get('choices') or known.get(name, [])
        if bool in (hint, *get_args(hint)):
            values = ['true', 'false']
        yield f'{name}='
        yield from (f'{name}={value}' for value in values)
