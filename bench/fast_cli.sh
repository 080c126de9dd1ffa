#!/bin/sh
# Stands for the Claude CLI where hundreds of runs are needed and the real one's 0.8 CPU-seconds each are not: enough of
# its stream-json that the invoker cannot tell. The prompt says what to do, in words of the form name=value:
#   job=NAME log=FILE  adds "begin NAME" and "end NAME" to FILE     sleep=SECONDS
#   write=NAME         makes a file of that name
[ "$1" = --version ] && { echo "0.0.0 (fast)"; exit 0; }
word() { # the value of name=… in the prompt, else nothing
  case $line in *"$1="*) rest=${line#*"$1="}; rest=${rest%%'"'*}; echo "${rest%%' '*}" ;; esac
}
say() { printf '{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%s"}}}\n' "$1"; }
while read -r line; do
  case $line in
  *'"type":"control_request"'*)
    id=${line#*'"request_id":"'}
    printf '{"type":"control_response","response":{"subtype":"success","request_id":"%s"}}\n' "${id%%'"'*}"
    ;;
  *'"type":"user"'*)
    job=$(word job) log=$(word log) pause=$(word sleep) file=$(word write)
    printf '{"type":"system","subtype":"init","model":"fast","tools":[]}\n'
    [ -n "$log" ] && echo "begin $job" >>"$log"
    [ -n "$file" ] && echo "$job" >"$file"
    say "begin "
    [ -n "$pause" ] && sleep "$pause"
    say "$job"
    [ -n "$log" ] && echo "end $job" >>"$log"
    printf '{"type":"result","subtype":"success","is_error":false,"result":"did %s","num_turns":1,"total_cost_usd":0.01,"stop_reason":"end_turn"}\n' "$job"
    ;;
  esac
done
