# bash completion for ebbctl

_ebbctl()
{
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} word command= i
	local commands='status sessions session lanes clients pools policies config doctor watch version help'
	local options='--socket --json --help --version'

	COMPREPLY=()
	case $prev in
	-s | --socket)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return
		;;
	-n | --interval)
		mapfile -t COMPREPLY < <(compgen -W '0.5 1 2 5 10 60' -- "$cur")
		return
		;;
	-c | --count)
		return
		;;
	esac
	# The command, if there is one already: the first word that is neither an option nor its value.
	for ((i = 1; i < COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		case $word in
		-s | --socket | -n | --interval | -c | --count) ((i++)) ;;
		-*) ;;
		*) command=$word && break ;;
		esac
	done
	if [[ $command == session && $cur != -* && $prev != session ]]; then
		mapfile -t COMPREPLY < <(compgen -W "set policy= merge= split= budget= recent= sinks= floor= observe= prefill= pin_prompt= seed=" -- "$cur")
		compopt -o nospace 2>/dev/null
		return
	fi
	[[ -z $command || $command == watch ]] && options+=' --interval --count'
	if [[ $cur == -* || -n $command ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
	else
		mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$cur")
	fi
} && complete -F _ebbctl ebbctl
