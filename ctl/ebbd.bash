# bash completion for ebbd

_ebbd()
{
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}

	COMPREPLY=()
	case $prev in
	-c | --config | -s | --socket)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		;;
	*)
		mapfile -t COMPREPLY < <(compgen -W '--config --socket --check-config --print-config --help --version' -- "$cur")
		;;
	esac
} && complete -F _ebbd ebbd
