"""A verifier: several frameworks check a claim, agree on it, and are trained with what people confirm.

Usage, on an empty database:

    CASEBOOK_ADDRESS=127.0.0.1:50051 PYTHONPATH=.tools/python python3 tests/systems/verifier.py
"""

from datetime import timedelta

# First, because it says what to do where grpcio is missing.
from client import connect, expect, refused, step

import grpc

from casebook.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    claim_pb2,
    claim_pb2_grpc,
    common_pb2,
    consensus_pb2,
    model_checkpoint_pb2,
    model_checkpoint_pb2_grpc,
    service_health_pb2,
    service_health_pb2_grpc,
    training_example_pb2,
    verification_pb2,
)

channel = connect()
claims = claim_pb2_grpc.ClaimServiceStub(channel)
models = model_checkpoint_pb2_grpc.ModelServiceStub(channel)
telemetry = service_health_pb2_grpc.TelemetryServiceStub(channel)
audit = audit_pb2_grpc.AuditServiceStub(channel)

step("record a claim and what each framework found, in one call")
answer = claims.CreateClaim(
    claim_pb2.CreateClaimRequest(
        claim_id="claim-123",
        claim=claim_pb2.Claim(
            content="All ravens are black.",
            claim_type="universal",
            source="field-guide",
            metadata={"language": "en"},
        ),
        verifications=[
            verification_pb2.Verification(
                id="ver-logic",
                framework="logic",
                result={"valid": False, "reasoning": "One white raven is enough."},
                confidence=0.9,
                evidence={"sources": ["https://example.org/white-raven"]},
                processing_time=timedelta(milliseconds=350),
                model_version="logic-2",
            ),
            verification_pb2.Verification(
                id="ver-statistics",
                framework="statistics",
                result={"valid": True},
                confidence=0.8,
            ),
        ],
    )
)
expect(answer.claim.id, "claim-123", "the id")
expect([one.id for one in answer.verifications], ["ver-logic", "ver-statistics"], "the verifications")

step("all or nothing: where one verification cannot be recorded, neither is the claim")
refused(
    grpc.StatusCode.ALREADY_EXISTS,
    claims.CreateClaim,
    claim_pb2.CreateClaimRequest(
        claim_id="claim-124",
        claim=claim_pb2.Claim(content="Some ravens are white."),
        verifications=[
            # This id is taken.
            verification_pb2.Verification(id="ver-logic", framework="logic", result={"valid": True}, confidence=1)
        ],
    ),
)
refused(grpc.StatusCode.NOT_FOUND, claims.GetClaim, claim_pb2.GetClaimRequest(claim_id="claim-124"))

step("one more verification")
claims.CreateVerification(
    verification_pb2.CreateVerificationRequest(
        verification=verification_pb2.Verification(
            claim_id="claim-123", framework="causal", result={"valid": False}, confidence=0.7
        )
    )
)

step("the verifications of the claim")
listed = claims.ListVerifications(verification_pb2.ListVerificationsRequest(claim_id="claim-123"))
found = {one.framework: one for one in listed.verifications}
expect(sorted(found), ["causal", "logic", "statistics"], "the frameworks")
expect(found["logic"].result["valid"], False, "the result")
expect(found["logic"].result["reasoning"], "One white raven is enough.", "the reasoning")
expect(found["logic"].evidence["sources"][0], "https://example.org/white-raven", "the source")
expect(found["logic"].processing_time.ToMilliseconds(), 350, "the processing time in ms")

step("the 100 newest verifications, of whatever claim; the newest comes first")
listed = claims.ListVerifications(
    verification_pb2.ListVerificationsRequest(page=common_pb2.PageRequest(page_size=100))
)
expect(len(listed.verifications), 3, "the number of verifications")
expect(listed.verifications[0].framework, "causal", "the newest")

step("what the frameworks agreed on")
answer = claims.CreateConsensus(
    consensus_pb2.CreateConsensusRequest(
        consensus_id="con-1",
        consensus=consensus_pb2.Consensus(
            claim_id="claim-123",
            consensus_result={"valid": False},
            participating_frameworks=["logic", "statistics"],
            consensus_type="majority",
            consensus_confidence=0.6,
            verification_ids=["ver-logic", "ver-statistics"],
        ),
    )
)
expect(answer.consensus.current, True, "whether it is the current one")

step("a claim has one current consensus: another one has to say that it supersedes it")
successor = consensus_pb2.CreateConsensusRequest(
    consensus_id="con-2",
    consensus=consensus_pb2.Consensus(
        claim_id="claim-123",
        consensus_result={"valid": False},
        participating_frameworks=["logic", "statistics", "causal"],
        consensus_type="weighted",
        consensus_confidence=0.85,
    ),
)
refused(grpc.StatusCode.ALREADY_EXISTS, claims.CreateConsensus, successor)
successor.options.on_conflict = common_pb2.ON_CONFLICT_REPLACE
answer = claims.CreateConsensus(successor)
expect(answer.consensus.supersedes_id, "con-1", "what it supersedes")
current = claims.GetCurrentConsensus(consensus_pb2.GetCurrentConsensusRequest(claim_id="claim-123")).consensus
expect((current.id, current.consensus_confidence), ("con-2", 0.85), "the current consensus")
# The one before stays on record.
before = claims.GetConsensus(consensus_pb2.GetConsensusRequest(consensus_id="con-1")).consensus
expect((before.current, before.superseded_by_id), (False, "con-2"), "the consensus before")

step("examples to train with")
examples = [
    ("ex-1", "All ravens are black.", False),
    ("ex-2", "Some ravens are black.", True),
    ("ex-3", "No raven is black.", False),
]
models.BatchCreateTrainingExamples(
    training_example_pb2.BatchCreateTrainingExamplesRequest(
        requests=[
            training_example_pb2.CreateTrainingExampleRequest(
                training_example_id=id,
                training_example=training_example_pb2.TrainingExample(
                    framework="logic",
                    claim_id="claim-123",
                    claim_text=text,
                    evidence={"sources": ["field notes"]},
                    validity=validity,
                ),
            )
            for id, text, validity in examples
        ]
    )
)


def claim_batch(batch):
    """What a training run gets when it asks for two examples."""
    answer = models.ClaimTrainingBatch(
        training_example_pb2.ClaimTrainingBatchRequest(framework="logic", training_batch_id=batch, max_examples=2)
    )
    for example in answer.training_examples:
        expect((example.used_in_training, example.training_batch_id), (True, batch), "the marks of an example")
    return [example.id for example in answer.training_examples]


step("a training run takes a batch: each example is given out once")
first, second, third = claim_batch("run-1"), claim_batch("run-2"), claim_batch("run-3")
expect([len(first), len(second), len(third)], [2, 1, 0], "the sizes of the batches")
expect(sorted(first + second), ["ex-1", "ex-2", "ex-3"], "the examples given out")

step("checkpoints of a model, of which one is active")
for id, version, accuracy in [("logic-1", "1.0.0", 0.91), ("logic-2", "2.0.0", 0.94)]:
    models.CreateModelCheckpoint(
        model_checkpoint_pb2.CreateModelCheckpointRequest(
            model_checkpoint_id=id,
            model_checkpoint=model_checkpoint_pb2.ModelCheckpoint(
                model_name="logic-net",
                framework="logic",
                model_version=version,
                checkpoint_path=f"s3://models/{id}.pt",
                metrics={"accuracy": accuracy},
            ),
        )
    )
activate = model_checkpoint_pb2.ActivateModelCheckpointRequest
answer = models.ActivateModelCheckpoint(activate(model_checkpoint_id="logic-1"))
expect((answer.model_checkpoint.active, answer.deactivated_id), (True, ""), "the first activation")
answer = models.ActivateModelCheckpoint(activate(model_checkpoint_id="logic-2"))
expect((answer.model_checkpoint.active, answer.deactivated_id), (True, "logic-1"), "the second activation")
active = models.ListModelCheckpoints(
    model_checkpoint_pb2.ListModelCheckpointsRequest(
        where=common_pb2.Selector(expression='framework = "logic" AND active = true')
    )
)
expect([checkpoint.id for checkpoint in active.model_checkpoints], ["logic-2"], "the active checkpoints")

step("a service says that it is alive")
for status in ["healthy", "degraded"]:
    telemetry.RecordHeartbeat(
        service_health_pb2.RecordHeartbeatRequest(
            service_health=service_health_pb2.ServiceHealth(
                service_name="verifier",
                instance_id="verifier-0",
                status=status,
                metadata={"queue": 3},
            )
        )
    )
listed = telemetry.ListServiceHealth(
    service_health_pb2.ListServiceHealthRequest(service_name="verifier", stale_after=timedelta(seconds=60))
)
instances = [(one.instance_id, one.status, one.stale) for one in listed.service_health]
expect(instances, [("verifier-0", "degraded", False)], "the instances")

step("the claim is corrected, and the audit log says what happened to it")
update = claim_pb2.UpdateClaimRequest(claim=claim_pb2.Claim(id="claim-123", source="field-guide-2"))
update.update_mask.paths.append("source")
claims.UpdateClaim(update)
log = audit.ListAuditEntries(
    audit_pb2.ListAuditEntriesRequest(
        target=common_pb2.ResourceRef(kind=common_pb2.RESOURCE_KIND_CLAIM, id="claim-123"),
        include_changes=True,
    )
)
expect([entry.action for entry in log.entries], ["UPDATE", "CREATE"], "what happened to the claim, newest first")
expect(dict(log.entries[0].changes["source"]), {"old": "field-guide", "new": "field-guide-2"}, "the change")
