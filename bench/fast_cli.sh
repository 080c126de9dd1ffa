#!/bin/bash
# Stands for the Claude CLI where hundreds of runs are needed and the real one's 0.8 CPU-seconds each are not: enough of
# its stream-json that the invoker cannot tell. The prompt says what to do, in words of the form name=value:
#   job=NAME log=FILE  adds "begin NAME" and "end NAME" to FILE     sleep=SECONDS
#   write=NAME         makes a file of that name           turn=NAME   adds NAME to the file `turns`, and says what is in it
# Each run asks the API once, for tokens that cost $0.01: 5,000 of Haiku 4.5 in and 1,000 out; the job's name goes along.
[ "$1" = --version ] && { echo "0.0.0 (fast)"; exit 0; }
word() { # the value of name=… in the prompt, else nothing
  case $line in *"$1="*) rest=${line#*"$1="}; rest=${rest%%'"'*}; echo "${rest%%' '*}" ;; esac
}
ask() {
  body='{"model":"claude-haiku-4-5","max_tokens":2000,"messages":[{"role":"user","content":"[[usage {\"input_tokens\": 5000, \"output_tokens\": 1000}]] '$job'"}]}'
  printf 'POST /v1/messages HTTP/1.1\r\nhost: api\r\nx-api-key: %s\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s' \
    "$key" "${#body}" "$body" | python3 -ISc '
import os, socket, sys
api = socket.socket(socket.AF_UNIX)
api.connect(os.environ["ANTHROPIC_UNIX_SOCKET"])
api.sendall(sys.stdin.buffer.read())
while api.recv(65536): pass'
}
IFS= read -r -d '' key <&"$CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR"
say() { printf '{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%s"}}}\n' "$1"; }
while read -r line; do
  case $line in
  *'"type":"control_request"'*)
    id=${line#*'"request_id":"'}
    printf '{"type":"control_response","response":{"subtype":"success","request_id":"%s"}}\n' "${id%%'"'*}"
    ;;
  *'"type":"user"'*)
    job=$(word job) log=$(word log) pause=$(word sleep) file=$(word write) turn=$(word turn) said=
    printf '{"type":"system","subtype":"init","model":"fast","tools":[]}\n'
    ask
    [ -n "$log" ] && echo "begin $job" >>"$log"
    [ -n "$file" ] && echo "$job" >"$file"
    [ -n "$turn" ] && echo "$turn" >>turns && said=" after $(tr '\n' ' ' <turns)"
    say "begin "
    [ -n "$pause" ] && sleep "$pause"
    say "$job"
    [ -n "$log" ] && echo "end $job" >>"$log"
    printf '{"type":"result","subtype":"success","is_error":false,"result":"did %s","num_turns":1,"total_cost_usd":0.01,"stop_reason":"end_turn"}\n' "$job$said"
    ;;
  esac
done
