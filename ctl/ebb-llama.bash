# bash completion for ebb-llama

_ebb_llama()
{
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=
	local options='--model --file --prompt --predict --chat --system --temp --seed --ignore-eos --special --batch --batch-offset --limit
		--chunk --nll --against-full --full-run --belady --kept --passkey --depths --keys --ids --all --json --local --socket --pool --wait --policy --merge --split --lanes --tag --pin --drop --budget --slots
		--prefill --window --sinks --recent
		--observe --set --threads --logits --status --progress --help --version'

	COMPREPLY=()
	case $prev in
	-m | --model | -f | --file | --socket | --logits | --status | --full-run | --kept | --lanes | --output | -o)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return
		;;
	--split) words='uniform pyramid head ada dynamic cake sparsity lazy-layer measured' ;;
	--policy) words='full streaming random h2o tova scissorhands roco keyformer snapkv morphkv rkv gkv raas lazy nacl l2norm vatp
		keydiff lagkv expected cam d2o look-m vl-cache csp ebb' ;;
	--merge) words='auto none pivot d2o cam' ;;
	--slots) words='f32 f16 bf16 q8' ;;
	--prefill) words='whole chunked' ;;
	--budget | --recent) words='25% 50% 256' ;;
	--set) words='floor= pin_prompt=' ;;
	-p | --prompt | -n | --predict | --system | --temp | --seed | --batch | --batch-offset | --limit | --chunk | --pool | --wait | \
		--window | --sinks | --observe | -t | --threads) return ;;
	*) words=$options ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
} && complete -F _ebb_llama ebb-llama
