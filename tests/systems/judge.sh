#!/bin/sh
# A judge: a program that decides about cases, looks up earlier ones, and lets people overrule it.
# Usage: CASEBOOK_ADDRESS=127.0.0.1:50051 tests/systems/judge.sh     (on an empty database)
set -eu
. "$(dirname "$0")/client.sh"

step "record a decision under an id of one's own"
call DecisionService/CreateDecision '{
  "decision_id": "dec-123",
  "decision": {
    "input_data": {"text": "May this comment stay?"},
    "final_verdict": "ALLOW",
    "avg_confidence": 0.95
  }
}'
has '"id": "dec-123"'
has '"auditSeq": "1"'

step "read it"
call DecisionService/GetDecision '{"decision_id": "dec-123"}'
has '"text": "May this comment stay?"'
has '"finalVerdict": "ALLOW"'
has '"avgConfidence": 0.95'
# Cases with the same input have the same hash.
case_hash=$(value caseHash)

step "an older decision, as it comes from another system"
call DecisionService/CreateDecision '{
  "decision_id": "dec-2020",
  "decision": {
    "input_data": {"text": "An old one"},
    "final_verdict": "DENY",
    "avg_confidence": 0.55,
    "decide_time": "2020-02-01T12:00:00Z"
  }
}'

step "the decisions of the last 24 hours"
call DecisionService/ListDecisions '{"window": {"newer_than": "86400s"}}'
has '"id": "dec-123"'
lacks '"id": "dec-2020"'

step "statistics, by verdict"
call DecisionService/GetDecisionStatistics '{"group_by": ["final_verdict"]}'
has '"count": "2"'
has '"avgConfidence": 0.75'
has '"final_verdict": "ALLOW"'
has '"final_verdict": "DENY"'

step "a person overrules the decision"
call DecisionService/CreateOverride '{
  "decision_id": "dec-123",
  "override": {
    "proposed_outcome": "DENY",
    "justification": "The comment names a private address.",
    "reviewer_id": "reviewer-7"
  }
}'
has '"originalOutcome": "ALLOW"'
has '"state": "DECISION_STATE_OVERRIDDEN"'
# What was decided stays on record.
has '"finalVerdict": "ALLOW"'
call DecisionService/GetDecisionStatistics '{"window": {"newer_than": "86400s"}}'
has '"overrideRate": 1'

step "make a precedent of it"
call PrecedentService/CreatePrecedent '{
  "precedent_id": "prec-001",
  "precedent": {
    "decision_id": "dec-123",
    "input": {"text": "May this comment stay?"},
    "summary": "A comment that reveals a private address",
    "final_verdict": "DENY",
    "tags": ["critical"]
  }
}'
has '"id": "prec-001"'
has '"decisionId": "dec-123"'
call PrecedentService/CreatePrecedent '{
  "precedent_id": "prec-002",
  "precedent": {
    "input": {"text": "Is this an advertisement?"},
    "summary": "Advertising without a label",
    "final_verdict": "DENY",
    "tags": ["routine"]
  }
}'

step "find precedents by tag"
call PrecedentService/ListPrecedents '{
  "where": {"filter": {"field": {"path": "tags", "contains_any": {"values": [{"string_value": "critical"}]}}}}
}'
has '"id": "prec-001"'
lacks '"id": "prec-002"'

step "find the precedents of exactly this case: by its input, or by the hash that the decision has"
call PrecedentService/FindPrecedents '{"input": {"text": "May this comment stay?"}}'
has '"id": "prec-001"'
has '"exactRank": 1'
lacks '"id": "prec-002"'
call PrecedentService/FindPrecedents "{\"case_hash\": \"$case_hash\"}"
has '"id": "prec-001"'
lacks '"id": "prec-002"'

step "find precedents by words; every word counts in its base form"
call PrecedentService/FindPrecedents '{"text": "private addresses", "highlight": true}'
has '"id": "prec-001"'
has '"textRank": 1'
has '**private**'
lacks '"id": "prec-002"'

step "how the server is: its pools of connections"
call AdminService/GetStatus '{}'
has '"ready": true'
has '"maxSize":'
lacks '"nearlyExhausted": true'

step "several writes as one: the second fails, so the first leaves nothing"
refused NotFound TransactionService/ExecuteTransaction '{
  "operations": [
    {"create_decision": {
      "decision_id": "dec-124",
      "decision": {"input_data": {"text": "Half a thing"}, "final_verdict": "ALLOW", "avg_confidence": 0.9}
    }},
    {"create_override": {
      "decision_id": "dec-999",
      "override": {
        "proposed_outcome": "DENY", "justification": "There is no such decision.", "reviewer_id": "reviewer-7"
      }
    }}
  ]
}'
refused NotFound DecisionService/GetDecision '{"decision_id": "dec-124"}'

step "without the fault both are there"
call TransactionService/ExecuteTransaction '{
  "operations": [
    {"create_decision": {
      "decision_id": "dec-124",
      "decision": {"input_data": {"text": "A whole thing"}, "final_verdict": "ALLOW", "avg_confidence": 0.9}
    }},
    {"create_override": {
      "decision_id": "$0.id",
      "override": {
        "proposed_outcome": "DENY", "justification": "It is complete, but wrong.", "reviewer_id": "reviewer-7"
      }
    }}
  ]
}'
call DecisionService/GetDecision '{"decision_id": "dec-124"}'
has '"state": "DECISION_STATE_OVERRIDDEN"'
