#!/usr/bin/env bash
# tools/check-layers.sh BUILD   Who may include whom (docs/design.md), and that evict/ needs nothing but mem*, str*, snprintf
# and assert. BUILD is the build folder whose evict objects are looked at.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${1:-build}
bad=0

complain() { echo "not ok: $*"; bad=$((bad + 1)); }

# allowed FOLDER PATTERN: what the files of FOLDER may include of this project, besides their own folder.
allowed() {
	local folder=$1 pattern=$2 file header
	while IFS=: read -r file header; do
		[ -n "$file" ] || continue
		[[ $header == */* ]] || continue	# a header beside the file itself
		[[ $header =~ ^($folder/|$pattern) ]] || complain "$file includes $header; $folder/ may include only: $pattern"
	done < <(grep -rHoE --include='*.c' --include='*.h' --include='*.cu' --include='*.cuh' '^[[:space:]]*#[[:space:]]*include "[^"]+"' "$folder" 2>/dev/null |
		sed -E 's/:[^"]*"([^"]+)"$/:\1/')
}
allowed evict '^$'
allowed conf '^$'
allowed gpu 'evict/(rule|stats)\.h$'
allowed libclient 'gpu/(gpu|layout)\.h$'
allowed daemon 'libclient/wire\.h$|conf/conf\.h$|evict/(evict|record|rule)\.h$|gpu/(gpu|layout)\.h$'
allowed replay 'evict/(evict|record|rule|split)\.h$|gpu/(gpu|layout)\.h$'
allowed ctl 'libclient/ebb\.h$'
allowed examples 'libclient/ebb\.h$'

# A public header alone: what is installed must not need the rest.
if grep -qE '^[[:space:]]*#[[:space:]]*include "' libclient/ebb.h; then
	complain "libclient/ebb.h includes a private header"
fi

n=0
for object in "$build"/obj/evict/*.o; do
	[ -e "$object" ] || continue
	n=$((n + 1))
	while read -r symbol; do
		case $symbol in
		mem*|str*|snprintf|__snprintf_chk|__mem*_chk|__str*_chk|__isoc99_strto*|__isoc23_strto*|__assert_fail|evict_*) ;;
		_GLOBAL_OFFSET_TABLE_|__stack_chk_fail|__errno_location|__ctype_b_loc) ;;
		*) complain "$object needs $symbol" ;;
		esac
	done < <(nm -u "$object" | awk '{ print $NF }')
done
[ $n -gt 0 ] || complain "no objects in $build/obj/evict: run make first"
echo "layers: #include lines of 8 folders and $n evict objects, $bad wrong"
[ $bad = 0 ]
