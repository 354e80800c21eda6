#!/usr/bin/env bash
# Fetches llm.c's starter pack to where gpt2flat looks for it; --help says how. It needs nothing installed but bash, od,
# awk and one of curl, wget, python3. A file gets its name only when server, header and size agree that it is whole.
set -euo pipefail
export LC_ALL=C # the tools' messages are read, see get
trap '' XFSZ    # beyond a limit on file sizes: a failed write, not a signal

# as in llm.c's dev/download_starter_pack.sh
ADDRESS=https://huggingface.co/datasets/karpathy/llmc-starter-pack/resolve/main
ATTEMPTS=5 # in a row that bring nothing new

# The bytes are for the announcement; what counts is the length that a file's own header asks for, see least_length.
# name                      set   kind         magic     version  bytes
FILES="
gpt2_124M.bin               base  checkpoint   20240326  3    497904640
gpt2_tokenizer.bin          base  tokenizer    20240328  1,2     372108
tiny_shakespeare_train.bin  base  token-file   20240520  1       611544
tiny_shakespeare_val.bin    base  token-file   20240520  1        66560
gpt2_124M_bf16.bin          more  checkpoint   20240326  5    248952832
gpt2_124M_debug_state.bin   more  debug-state  20240327  2    549369860
hellaswag_val.bin           more  choice-file  20240522  1      3600000"
MODEL=gpt2_124M.bin MODEL_DIMS="1024 50257 12 12 768 50304" # whose dims the debug state has

usage() {
    cat <<END
usage: downloaddataset.sh [--all] [--from ADDRESS] [--with curl|wget|python3]

Fetches llm.c's starter pack into data/ beside this script, or into \$GPT2FLAT_DATA, where the trainer finds it: what
fine-tuning GPT-2 124M needs, $(total base); with --all also the model in bf16, the debug state for gpt2flat.check and
HellaSwag, $(total '*') together. What is there and whole is left alone, what was interrupted goes on where it stopped.

  --from ADDRESS   another address, or a local folder, that has these files; or set GPT2FLAT_DOWNLOAD_BASE
  --with TOOL      what to fetch with; otherwise the first of the three that works
END
}

# --- small things ----------------------------------------------------------------------------------------------------

die() {
    printf 'downloaddataset.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

[ -t 1 ] && CLEAR=$'\033[K' || CLEAR= # the rest of a line, see show_progress
note() { printf '%-28s%s%s\n' "$name" "$1" "$CLEAR"; }

size_of() { if [ -e "$1" ]; then echo $(($(wc -c <"$1"))); else echo 0; fi; }

human() { # BYTES
    local unit=kB scale=1000
    [ "$1" -lt 1000000 ] || unit=MB scale=1000000
    [ "$1" -lt 1000000000 ] || unit=GB scale=1000000000
    printf '%d.%d %s' $(($1 / scale)) $(($1 * 10 / scale % 10)) $unit
}

each() { # SET COMMAND: runs it for every file of a set (a pattern), with the columns of the table in variables
    while read -r name set kind magic versions bytes; do
        # shellcheck disable=SC2254 # a pattern
        case $set in $1) "$2" ;; esac
    done <<<"${FILES#?}"
}

add_up() { sum=$((sum + bytes)); }
total() { sum=0 && each "$1" add_up && human "$sum"; }

# --- is it the file? -------------------------------------------------------------------------------------------------

examine() { # FILE: sets size, verdict: none, short (the beginning of the file), whole or wrong, and `why` it is not whole
    size=0 verdict=none why="is not there"
    [ -e "$1" ] || return 0
    [ -f "$1" ] && [ -r "$1" ] || die "$1: is no file that can be read: move it away"
    local length found version words
    size=$(size_of "$1")
    read -r -d '' found version words <<<"$(header_words "$1")" || true # to the end, not to a line's
    if [ "$size" -ge 4 ] && [ "$found" != "$magic" ]; then
        verdict=wrong why="starts with '$(head -c 24 "$1" | tr -c '[:print:]' .)' ($found), expected $magic, a ${kind/-/ }"
    elif [ "$size" -lt 1024 ]; then
        verdict=short why="has $size bytes, less than a header"
    elif [[ ,$versions, != *,$version,* ]]; then
        verdict=wrong why="is a ${kind/-/ } of version $version, expected $versions"
    else
        # shellcheck disable=SC2086 # words
        length=$(least_length "$1" "$version" $words)
        if [ "$length" -le 1024 ]; then
            verdict=wrong why="is a ${kind/-/ } whose header or records cannot be"
        elif [ "$size" -lt "$length" ]; then
            verdict=short why="has $size bytes, its header asks for at least $length"
        elif [ "$size" -gt "$length" ]; then
            verdict=wrong why="has $size bytes, its header asks for $length"
        else
            verdict=whole why=
        fi
    fi
}

header_words() { od -An -v -tu4 -N32 "$1"; } # the first eight

least_length() { # FILE VERSION WORD...: the bytes that header and first records ask for; up to 1024: it cannot be
    local file=$1 width=$(($2 == 5 ? 2 : 4)) dims=$MODEL_DIMS
    shift 2
    case $kind in
        checkpoint) echo $((1024 + width * $(parameters "$@"))) ;;
        debug-state) # B x T tokens and targets and logits, loss, gradients
            [ ! -f "$folder/$MODEL" ] || read -r -d '' _ _ dims <<<"$(header_words "$folder/$MODEL")" || true
            # shellcheck disable=SC2086 # words
            set -- "$1" "$2" $dims
            echo $((1024 + 4 * ($1 * $2 * (2 + $4) + 1 + $(parameters "${@:3}"))))
            ;;
        token-file) echo $((1024 + 2 * $1)) ;;
        tokenizer) records "$file" "$1" 1 ;;   # bytes: the length of a token, the token
        choice-file) records "$file" "$1" 2 ;; # uint16: 65535, the bytes of the whole example, the rest of it
    esac
}

parameters() { # maxT V L NH C Vp: how many GPT-2 has; 0 for dims that cannot be, or that 64 bits could not multiply
    local dim
    for dim; do [ "$dim" -ge 1 ] && [ "$dim" -le 1048576 ] && [ $(($3 | $5)) -le 65535 ] || { echo 0 && return; }; done
    echo $(($5 * ($6 + $1 + 2 + $3 * (12 * $5 + 13))))
}

records() { # FILE COUNT WIDTH: the bytes up to the end of the last record, or the least if the file ends before
    od -An -v -tu"$3" -j1024 "$1" | awk -v count="$2" -v width="$3" '
        BEGIN { lead = width - 1; least = width == 1 ? 2 : 15 }
        { for (i = 1; i <= NF; i++) {
            if (n < count && lead && at == edge && $i != 65535) bad = 1
            if (n < count && at == edge + lead) {
                step = lead ? $i / 2 : 1 + $i
                if (step < least || step != int(step)) bad = 1
                edge += step
                n++
            }
            at++
        } }
        END { printf "%.0f\n", bad ? 0 : 1024 + width * (edge + (count - n) * least) }'
}

# --- fetching --------------------------------------------------------------------------------------------------------

read -r -d '' PYTHON <<'END' || true
import http.client, os, sys, urllib.error, urllib.request

def end(code, problem):
    print(problem, file=sys.stderr)
    raise SystemExit(code)

url, part = sys.argv[1:]
start = os.path.getsize(part)
try:
    asked = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    reply = urllib.request.urlopen(asked, timeout=60)
except urllib.error.HTTPError as problem:
    end(22, f"error: {problem.code} {problem.reason}")
except urllib.error.URLError as problem:
    end(7, problem.reason)
except (OSError, http.client.HTTPException) as problem:
    end(56, problem)
resumed = reply.status == 206
if resumed and not reply.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
    end(33, "the server sent another range than asked for")
file = os.open(part, os.O_WRONLY | (os.O_APPEND if resumed else os.O_TRUNC))
missing = reply.length or 0
while True:
    try:
        data = memoryview(reply.read1(1 << 18))
    except (OSError, http.client.HTTPException) as problem:
        end(56, problem)
    if not data:
        break
    missing -= len(data)
    while data:
        try:
            data = data[os.write(file, data):]
        except OSError as problem:
            end(23, problem.strerror)
if missing > 0:
    end(18, f"the connection ended {missing} bytes too early")
END

get() { # URL PART: fetches what PART lacks; sets code, one of curl's whatever the tool, and `said`, the last words
    code=0
    : >"$log"
    case $tool in
        curl) run curl -fsSL -C - --connect-timeout 30 --speed-limit 1 --speed-time 60 -o "$2" "$1" || code=$? ;;
        wget) run wget -nv -c -t 1 -T 60 -O "$2" "$1" || code=$? ;;
        python3) run python3 -I -S -c "$PYTHON" "$1" "$2" || code=$? ;;
        copy) if [ -f "$1" ]; then run cp "$1" "$2" || code=23; else code=22; fi ;;
    esac
    said=$([ "$code" = 0 ] || sed '/^[[:space:]]*$/d' "$log" | tail -n 1)
    [ "$tool" != wget ] || case $code:$said in
        3:*) code=23 ;;
        4:*refused* | 4:*resolve* | 4:*unreachable* | 4:*route* | 5:*) code=7 ;;
        8:*) code=22 ;;
    esac
}

run() { # in the background, so that a signal ends both
    local status=0
    "$@" >"$log" 2>&1 </dev/null &
    child=$!
    wait "$child" || status=$?
    child=
    return "$status"
}

fetch() { # the file of this row of the table, if it is on the list
    [[ $todo == *" $name "* ]] || return 0
    local url=$base/$name file=$folder/$name failures=0 began best reason
    part=$file.part
    reason=$({ : >>"$part"; } 2>&1) || die "$part: cannot be written: ${reason##*: }"
    examine "$part"
    [ "$verdict" != wrong ] || { note "begun anew: what $part held $why" && : >"$part"; }
    began=$(size_of "$part") best=$began code=0
    show_progress
    until [ "$code:$verdict" = 0:whole ]; do
        get "$url" "$part"
        examine "$part"
        judge
        if [ "$size" -gt "$best" ]; then best=$size failures=0; else failures=$((failures + 1)); fi
        [ "$code:$verdict" != 0:whole ] || break
        reason="$part ${why:-is whole by its header, but not for the server}${said:+ ($said)}"
        [ "$failures" -lt "$ATTEMPTS" ] || die "$url: given up, $ATTEMPTS attempts brought nothing new: $reason"
        note "interrupted after $(human "$size")${said:+ ($said)}: once more"
        sleep $((2 * failures))
    done
    stop_progress
    sync "$part" 2>/dev/null || sync # its bytes reach the disk before its name does
    [ ! -e "$file" ] || mv -f "$file" "$file.old"
    mv -f "$part" "$file"
    note "$(human "$size"), done"
}

judge() { # ends the program unless what went wrong may go better next time
    local status=
    [[ ! $said =~ (error:|ERROR)' '([0-9]{3}) ]] || status=${BASH_REMATCH[2]}
    case $code:$verdict:$status in
        0:whole:*) ;;
        *:wrong:*) : >"$part" && die "$url: is not the file: it $why" ;;
        23:*) die "$part: cannot be written beyond $size bytes ($said): make room and run this again to go on" ;;
        33:* | 22:*:416) : >"$part" ;; # the server cannot go on from here
        22:*:408 | 22:*:429 | 22:*:5??) ;;
        22:*) die "$url: ${said:-no such file}: --from names another address or a local folder" ;;
        [5-7]:* | 35:* | 60:*) [ "$best" -gt "$began" ] || die "$url: cannot be reached ($said): $WITHOUT" ;;
    esac
}

show_progress() { # on a terminal, while the part grows
    [ -t 1 ] || return 0
    while sleep 1; do printf '%-28s%s of %s \r' "$name" "$(human "$(size_of "$part")")" "$(human "$bytes")"; done &
    watcher=$!
}

stop_progress() {
    [ -z "$watcher" ] || { kill "$watcher" && wait "$watcher"; } 2>/dev/null || true
    watcher=
}

# --- the order of things ---------------------------------------------------------------------------------------------

announce() { # says what is to be done about the file of this row, and puts it on the list
    local file=$folder/$name have
    examine "$file"
    [ "$verdict" != whole ] || { note "$(human "$size"), there already" && return; }
    have=$(size_of "$file.part")
    todo="$todo$name " need=$((need + (have < bytes ? bytes - have : 0)))
    note "$(human "$bytes")$([ "$have" = 0 ] || echo ", of which $(human "$have") are here")"
    [ "$verdict" = none ] || note "what is there $why: to be replaced, and kept as $name.old"
}

take_lock() { # one at a time: two would write into the same part
    local path=$folder/.download.lock holder reason
    for _ in 1 2; do
        reason=$({ set -C && echo $$ >"$path"; } 2>&1) && lock=$path && return
        holder=$(cat "$path" 2>/dev/null) || true
        [ -z "$holder" ] || ! kill -0 "$holder" 2>/dev/null ||
            die "$folder: process $holder fetches into it already; if it does something else, remove $path"
        rm -f "$path" # of one that was killed
    done
    die "$path: cannot be written: ${reason##*: }"
}

finish() {
    exec 2>/dev/null # bash tells of what it kills
    stop_progress
    [ -z "$child" ] || { kill "$child" && wait "$child"; } || true
    [ -z "$part" ] || [ -s "$part" ] || rm -f "$part"
    rm -f "$log" ${lock:+"$lock"}
}

try_next() {
    name="try next"
    note "python -m gpt2flat.train${GPT2FLAT_DATA:+ with GPT2FLAT_DATA=$GPT2FLAT_DATA}"
}

works() { # busybox's wget lacks -nv, and Wget2 neither resumes with -O nor ends with an error
    case $("$1" --version 2>/dev/null) in curl* | "GNU Wget 1."* | "Python 3"*) ;; *) return 1 ;; esac
}

files=base base=${GPT2FLAT_DOWNLOAD_BASE:-$ADDRESS} tool=
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage && exit ;;
        --all) files='*' ;;
        --from=*) base=${1#*=} ;;
        --with=*) tool=${1#*=} ;;
        --from | --with)
            [ $# -ge 2 ] || die "$1: needs a value, --help says which" 2
            if [ "$1" = --from ]; then base=$2; else tool=$2; fi
            shift
            ;;
        *) die "$1: is no argument of this script, --help lists them" 2 ;;
    esac
    shift
done
case $tool in '' | curl | wget | python3) ;; *) die "--with $tool: expected curl, wget or python3" 2 ;; esac
base=${base#file://} base=${base%/}

folder=${GPT2FLAT_DATA:-$(cd "$(dirname "${BASH_SOURCE[0]}")" >/dev/null && pwd)/data}
WITHOUT="put the files into $folder by hand, name another address or a folder with --from, or train without them: \
python -m gpt2flat.train takes the built-in text, with --init d12 a GPT-2 124M of random weights"
child='' watcher='' part='' lock='' log=$(mktemp)
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

case $base in
    http://* | https://*) [ -n "$tool" ] || for tool in curl wget python3 ''; do ! works "$tool" || break; done ;;
    *) if [ -d "$base" ]; then tool=copy; else die "--from $base: is neither a web address nor a folder" 2; fi ;;
esac
mkdir -p "$folder" 2>/dev/null || die "$folder: cannot be made a folder"
todo=' ' need=0
each "$files" announce
if [ "$todo" = ' ' ]; then try_next && exit; fi
free=$(($(df -Pk "$folder" | awk 'NR == 2 { print $4 }') * 1024))
name=total note "$(human $need) from $base into $folder, which has room for $(human $free)"
[ "$need" -le "$free" ] || die "$folder: has room for $(human $free), not for $(human $need): make some, or set GPT2FLAT_DATA"
[ "$tool" = copy ] || works "$tool" || die "no ${tool:-curl, wget or python3} that works is here: install one, or $WITHOUT"
take_lock
each "$files" fetch
try_next
