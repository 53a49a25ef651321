#!/usr/bin/env bash
# Provides an exam, waits until somebody sits it, gives them time, closes it, shows the results.
set -euo pipefail

url=${CARILLON_URL:-http://127.0.0.1:3001}
key=${CARILLON_KEY:-$(cat carillon-data/dev-api-key)}
exam=${1:-anatomy-1}

# ask METHOD PATH [BODY]
ask() {
  curl --silent --show-error --fail-with-body --request "$1" "$url$2" \
    --header "authorization: Bearer $key" --header 'content-type: application/json' \
    ${3:+--data "$3"}
  echo
}

echo "== the exam"
ask PUT "/v1/exams/$exam" '{
  "title": "Anatomy 1",
  "durationMinutes": 30,
  "attemptsAllowed": 1,
  "release": "after_close",
  "questions": [
    { "id": "bones", "kind": "numeric", "text": "How many bones has an adult?", "correct": 206 },
    { "id": "femur", "kind": "single_choice", "text": "Where is the femur?",
      "options": ["Arm", "Leg", "Skull"], "correct": 1, "points": 2 }
  ]
}'

echo "== waiting for somebody to join (join-exam {examId: \"$exam\"}); ^C to give up"
until ask GET "/v1/exams/$exam/attempts" | grep -q '"status"'; do sleep 1; done

echo "== five minutes more for everybody"
ask POST "/v1/exams/$exam/control" '{ "action": "extend", "seconds": 300 }'

echo "== closing in ${CLOSE_AFTER:-20} seconds"
sleep "${CLOSE_AFTER:-20}"
ask POST "/v1/exams/$exam/control" '{ "action": "close" }'
while ask GET "/v1/exams/$exam/attempts" | grep -qE '"IN_PROGRESS"|"PAUSED"'; do sleep 1; done

echo "== results"
ask GET "/v1/exams/$exam/results"
