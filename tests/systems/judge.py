"""A judge: a program that decides about cases, looks up earlier ones, and lets people overrule it.

Usage, on an empty database:

    CASEBOOK_ADDRESS=127.0.0.1:50051 PYTHONPATH=.tools/python python3 tests/systems/judge.py
"""

from datetime import datetime, timedelta, timezone

# First, because it says what to do where grpcio is missing.
from client import connect, expect, refused, step

import grpc

from casebook.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    decision_pb2,
    decision_pb2_grpc,
    override_pb2,
    precedent_pb2,
    precedent_pb2_grpc,
    transaction_pb2,
    transaction_pb2_grpc,
)

channel = connect()
decisions = decision_pb2_grpc.DecisionServiceStub(channel)
precedents = precedent_pb2_grpc.PrecedentServiceStub(channel)
transactions = transaction_pb2_grpc.TransactionServiceStub(channel)
admin = admin_pb2_grpc.AdminServiceStub(channel)

DAY = common_pb2.TimeWindow(newer_than=timedelta(hours=24))

step("record a decision under an id of one's own")
answer = decisions.CreateDecision(
    decision_pb2.CreateDecisionRequest(
        decision_id="dec-123",
        decision=decision_pb2.Decision(
            input_data={"text": "May this comment stay?"},
            final_verdict="ALLOW",
            avg_confidence=0.95,
        ),
    )
)
expect(answer.decision.id, "dec-123", "the id")
expect(answer.receipt.audit_seq, 1, "the number in the audit log")

step("read it")
decision = decisions.GetDecision(decision_pb2.GetDecisionRequest(decision_id="dec-123")).decision
expect(decision.input_data["text"], "May this comment stay?", "the input")
expect(decision.final_verdict, "ALLOW", "the verdict")
expect(decision.avg_confidence, 0.95, "the confidence")

step("an older decision, as it comes from another system")
decisions.CreateDecision(
    decision_pb2.CreateDecisionRequest(
        decision_id="dec-2020",
        decision=decision_pb2.Decision(
            input_data={"text": "An old one"},
            final_verdict="DENY",
            avg_confidence=0.55,
            decide_time=datetime(2020, 2, 1, 12, tzinfo=timezone.utc),
        ),
    )
)

step("the decisions of the last 24 hours")
recent = decisions.ListDecisions(decision_pb2.ListDecisionsRequest(window=DAY))
expect([decision.id for decision in recent.decisions], ["dec-123"], "the recent decisions")

step("statistics, by verdict")
statistics = decisions.GetDecisionStatistics(
    decision_pb2.GetDecisionStatisticsRequest(group_by=["final_verdict"])
)
expect(statistics.total.count, 2, "the count")
expect(round(statistics.total.avg_confidence, 6), 0.75, "the mean confidence")
counts = {group.key["final_verdict"]: group.count for group in statistics.groups}
expect(counts, {"ALLOW": 1, "DENY": 1}, "the counts by verdict")

step("a person overrules the decision")
answer = decisions.CreateOverride(
    decision_pb2.CreateOverrideRequest(
        decision_id="dec-123",
        override=override_pb2.Override(
            proposed_outcome="DENY",
            justification="The comment names a private address.",
            reviewer_id="reviewer-7",
        ),
    )
)
expect(answer.override.original_outcome, "ALLOW", "the outcome overruled")
expect(answer.decision.state, decision_pb2.DECISION_STATE_OVERRIDDEN, "the decision's state")
expect(answer.decision.final_verdict, "ALLOW", "what was decided, which stays on record")
statistics = decisions.GetDecisionStatistics(decision_pb2.GetDecisionStatisticsRequest(window=DAY))
expect(statistics.total.override_rate, 1.0, "the override rate")

step("make a precedent of it")
answer = precedents.CreatePrecedent(
    precedent_pb2.CreatePrecedentRequest(
        precedent_id="prec-001",
        precedent=precedent_pb2.Precedent(
            decision_id="dec-123",
            input={"text": "May this comment stay?"},
            summary="A comment that reveals a private address",
            final_verdict="DENY",
            tags=["critical"],
        ),
    )
)
expect(answer.precedent.decision_id, "dec-123", "the decision it comes from")
expect(answer.precedent.case_hash, decision.case_hash, "the hash, which is that of the decision")
precedents.CreatePrecedent(
    precedent_pb2.CreatePrecedentRequest(
        precedent_id="prec-002",
        precedent=precedent_pb2.Precedent(
            input={"text": "Is this an advertisement?"},
            summary="Advertising without a label",
            final_verdict="DENY",
            tags=["routine"],
        ),
    )
)

step("find precedents by tag")
critical = common_pb2.FieldCondition(
    path="tags",
    contains_any=common_pb2.ValueList(values=[common_pb2.Value(string_value="critical")]),
)
listed = precedents.ListPrecedents(
    precedent_pb2.ListPrecedentsRequest(
        where=common_pb2.Selector(filter=common_pb2.Filter(field=critical)),
    )
)
expect([precedent.id for precedent in listed.precedents], ["prec-001"], "the critical precedents")

step("find the precedents of exactly this case: by its input, or by the hash that the decision has")
found = precedents.FindPrecedents(
    precedent_pb2.FindPrecedentsRequest(input={"text": "May this comment stay?"})
)
expect([(hit.precedent.id, hit.exact_rank) for hit in found.hits], [("prec-001", 1)], "the hits")
found = precedents.FindPrecedents(precedent_pb2.FindPrecedentsRequest(case_hash=decision.case_hash))
expect([hit.precedent.id for hit in found.hits], ["prec-001"], "the hits")

step("find precedents by words; every word counts in its base form")
found = precedents.FindPrecedents(
    precedent_pb2.FindPrecedentsRequest(text="private addresses", highlight=True)
)
expect([(hit.precedent.id, hit.text_rank) for hit in found.hits], [("prec-001", 1)], "the hits")
expect("**private**" in found.hits[0].highlights[0], True, "whether the word is marked")

step("how the server is: its pools of connections")
status = admin.GetStatus(admin_pb2.GetStatusRequest())
expect(status.ready, True, "whether it is ready")
expect(len(status.pools) > 0, True, "whether it has pools")
for pool in status.pools:
    # nearly_exhausted is the warning: more than 80 % of max_size in use.
    expect(pool.in_use <= pool.size <= pool.max_size, True, f"the order of the numbers of {pool.name}")
    expect(pool.nearly_exhausted, False, f"the warning of {pool.name}")


def both_writes(text, overruled):
    """A decision and an override, as one transaction."""
    decide = decision_pb2.CreateDecisionRequest(
        decision_id="dec-124",
        decision=decision_pb2.Decision(input_data={"text": text}, final_verdict="ALLOW", avg_confidence=0.9),
    )
    overrule = decision_pb2.CreateOverrideRequest(
        decision_id=overruled,
        override=override_pb2.Override(
            proposed_outcome="DENY",
            justification="It is complete, but wrong.",
            reviewer_id="reviewer-7",
        ),
    )
    operation = transaction_pb2.ExecuteTransactionRequest.Operation
    return transaction_pb2.ExecuteTransactionRequest(
        operations=[operation(create_decision=decide), operation(create_override=overrule)]
    )


step("several writes as one: the second fails, so the first leaves nothing")
refused(
    grpc.StatusCode.NOT_FOUND,
    transactions.ExecuteTransaction,
    both_writes("Half a thing", overruled="dec-999"),
)
refused(
    grpc.StatusCode.NOT_FOUND,
    decisions.GetDecision,
    decision_pb2.GetDecisionRequest(decision_id="dec-124"),
)

step("without the fault both are there")
# "$0.id" is the id of what operation 0 has made.
transactions.ExecuteTransaction(both_writes("A whole thing", overruled="$0.id"))
decision = decisions.GetDecision(decision_pb2.GetDecisionRequest(decision_id="dec-124")).decision
expect(decision.state, decision_pb2.DECISION_STATE_OVERRIDDEN, "the decision's state")
