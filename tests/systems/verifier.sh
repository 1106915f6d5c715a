#!/bin/sh
# A verifier: several frameworks check a claim, agree on it, and are trained with what people confirm.
# Usage: CASEBOOK_ADDRESS=127.0.0.1:50051 tests/systems/verifier.sh     (on an empty database)
set -eu
. "$(dirname "$0")/client.sh"

step "record a claim and what each framework found, in one call"
call ClaimService/CreateClaim '{
  "claim_id": "claim-123",
  "claim": {
    "content": "All ravens are black.",
    "claim_type": "universal",
    "source": "field-guide",
    "metadata": {"language": "en"}
  },
  "verifications": [
    {
      "id": "ver-logic",
      "framework": "logic",
      "result": {"valid": false, "reasoning": "One white raven is enough."},
      "confidence": 0.9,
      "evidence": {"sources": ["https://example.org/white-raven"]},
      "processing_time": "0.350s",
      "model_version": "logic-2"
    },
    {"id": "ver-statistics", "framework": "statistics", "result": {"valid": true}, "confidence": 0.8}
  ]
}'
has '"id": "claim-123"'
has '"id": "ver-logic"'
has '"id": "ver-statistics"'

step "all or nothing: where one verification cannot be recorded, neither is the claim"
refused AlreadyExists ClaimService/CreateClaim '{
  "claim_id": "claim-124",
  "claim": {"content": "Some ravens are white."},
  "verifications": [{"id": "ver-logic", "framework": "logic", "result": {"valid": true}, "confidence": 1}]
}'
refused NotFound ClaimService/GetClaim '{"claim_id": "claim-124"}'

step "one more verification"
call ClaimService/CreateVerification '{
  "verification": {"claim_id": "claim-123", "framework": "causal", "result": {"valid": false}, "confidence": 0.7}
}'

step "the verifications of the claim"
call ClaimService/ListVerifications '{"claim_id": "claim-123"}'
count 3 '"claimId": "claim-123"'
has '"reasoning": "One white raven is enough."'
has '"processingTime": "0.350s"'

step "the 100 newest verifications, of whatever claim; the newest comes first"
call ClaimService/ListVerifications '{"page": {"page_size": 100}}'
count 3 '"framework":'
[ "$(value framework)" = causal ] || fail "the newest is not the first"

step "what the frameworks agreed on"
call ClaimService/CreateConsensus '{
  "consensus_id": "con-1",
  "consensus": {
    "claim_id": "claim-123",
    "consensus_result": {"valid": false},
    "participating_frameworks": ["logic", "statistics"],
    "consensus_type": "majority",
    "consensus_confidence": 0.6,
    "verification_ids": ["ver-logic", "ver-statistics"]
  }
}'
has '"current": true'

step "a claim has one current consensus: another one has to say that it supersedes it"
refused AlreadyExists ClaimService/CreateConsensus '{
  "consensus_id": "con-2",
  "consensus": {
    "claim_id": "claim-123",
    "consensus_result": {"valid": false},
    "participating_frameworks": ["logic", "statistics", "causal"],
    "consensus_type": "weighted",
    "consensus_confidence": 0.85
  }
}'
call ClaimService/CreateConsensus '{
  "consensus_id": "con-2",
  "consensus": {
    "claim_id": "claim-123",
    "consensus_result": {"valid": false},
    "participating_frameworks": ["logic", "statistics", "causal"],
    "consensus_type": "weighted",
    "consensus_confidence": 0.85
  },
  "options": {"on_conflict": "ON_CONFLICT_REPLACE"}
}'
has '"supersedesId": "con-1"'
call ClaimService/GetCurrentConsensus '{"claim_id": "claim-123"}'
has '"id": "con-2"'
has '"consensusConfidence": 0.85'
# The one before stays on record.
call ClaimService/GetConsensus '{"consensus_id": "con-1"}'
has '"supersededById": "con-2"'
lacks '"current": true'

step "examples to train with"
call ModelService/BatchCreateTrainingExamples '{
  "requests": [
    {
      "training_example_id": "ex-1",
      "training_example": {
        "framework": "logic",
        "claim_id": "claim-123",
        "claim_text": "All ravens are black.",
        "evidence": {"sources": ["field notes"]},
        "validity": false
      }
    },
    {
      "training_example_id": "ex-2",
      "training_example": {
        "framework": "logic",
        "claim_text": "Some ravens are black.",
        "evidence": {"sources": ["field notes"]},
        "validity": true
      }
    },
    {
      "training_example_id": "ex-3",
      "training_example": {
        "framework": "logic",
        "claim_text": "No raven is black.",
        "evidence": {"sources": ["field notes"]},
        "validity": false
      }
    }
  ]
}'
count 3 '"framework": "logic"'

step "a training run takes a batch: each example is given out once"
call ModelService/ClaimTrainingBatch '{"framework": "logic", "training_batch_id": "run-1", "max_examples": 2}'
count 2 '"trainingBatchId": "run-1"'
count 2 '"usedInTraining": true'
call ModelService/ClaimTrainingBatch '{"framework": "logic", "training_batch_id": "run-2", "max_examples": 2}'
count 1 '"trainingBatchId": "run-2"'
call ModelService/ClaimTrainingBatch '{"framework": "logic", "training_batch_id": "run-3", "max_examples": 2}'
lacks '"trainingBatchId"'
call ModelService/ListTrainingExamples '{"training_batch_id": "run-1"}'
count 2 '"trainingBatchId": "run-1"'

step "checkpoints of a model, of which one is active"
call ModelService/CreateModelCheckpoint '{
  "model_checkpoint_id": "logic-1",
  "model_checkpoint": {
    "model_name": "logic-net", "framework": "logic", "model_version": "1.0.0",
    "checkpoint_path": "s3://models/logic-1.pt", "metrics": {"accuracy": 0.91}
  }
}'
call ModelService/CreateModelCheckpoint '{
  "model_checkpoint_id": "logic-2",
  "model_checkpoint": {
    "model_name": "logic-net", "framework": "logic", "model_version": "2.0.0",
    "checkpoint_path": "s3://models/logic-2.pt", "metrics": {"accuracy": 0.94}
  }
}'
call ModelService/ActivateModelCheckpoint '{"model_checkpoint_id": "logic-1"}'
lacks '"deactivatedId"'
call ModelService/ActivateModelCheckpoint '{"model_checkpoint_id": "logic-2"}'
has '"deactivatedId": "logic-1"'
call ModelService/ListModelCheckpoints '{"where": {"expression": "framework = \"logic\" AND active = true"}}'
has '"id": "logic-2"'
lacks '"id": "logic-1"'

step "a service says that it is alive"
call TelemetryService/RecordHeartbeat '{
  "service_health": {
    "service_name": "verifier", "instance_id": "verifier-0", "status": "healthy", "metadata": {"queue": 3}
  }
}'
call TelemetryService/RecordHeartbeat '{
  "service_health": {"service_name": "verifier", "instance_id": "verifier-0", "status": "degraded"}
}'
call TelemetryService/ListServiceHealth '{"service_name": "verifier", "stale_after": "60s"}'
count 1 '"instanceId": "verifier-0"'
has '"status": "degraded"'
has '"lastHeartbeatTime"'
lacks '"stale": true'

step "the claim is corrected, and the audit log says what happened to it"
call ClaimService/UpdateClaim '{
  "claim": {"id": "claim-123", "source": "field-guide-2"},
  "update_mask": {"paths": ["source"]}
}'
call AuditService/ListAuditEntries '{
  "target": {"kind": "RESOURCE_KIND_CLAIM", "id": "claim-123"},
  "include_changes": true
}'
has '"action": "CREATE"'
has '"action": "UPDATE"'
has '"old": "field-guide"'
has '"new": "field-guide-2"'
