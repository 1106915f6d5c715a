"""Serves CreateDecision and GetDecision with grpcio and SQLAlchemy: the baseline that Casebook is measured against.

It is set up as such services commonly are: one process, 30 threads, a pool of 10 + 20 connections, a session and a
commit for every call. It keeps no versions, no audit log and no idempotency, so what it is spared counts in its favour.
"""

import argparse
import base64
import hashlib
import importlib
import json
import pathlib
import signal
import sys
import tempfile
import threading
import uuid
from concurrent import futures
from datetime import datetime, timedelta, timezone

import grpc
from google.protobuf import json_format
from sqlalchemy import DateTime, Float, Integer, Interval, LargeBinary, Text, create_engine, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError, OperationalError, TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

PROTO_ROOT = pathlib.Path(__file__).resolve().parents[2] / "proto"
THREADS = 30
POOL_SIZE = 10
POOL_OVERFLOW = 20


def generate(into):
    """Compiles the protocol as it stands in this tree, so that baseline and Casebook always speak the same one."""
    import grpc_tools
    from grpc_tools import protoc

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    files = sorted(str(path.relative_to(PROTO_ROOT)) for path in (PROTO_ROOT / "casebook" / "v1").glob("*.proto"))
    status = protoc.main(
        ["protoc", f"-I{PROTO_ROOT}", f"-I{well_known}", f"--python_out={into}", f"--grpc_python_out={into}", *files]
    )
    if status != 0:
        sys.exit(f"protoc failed with status {status}")
    sys.path.insert(0, str(into))
    load = importlib.import_module
    return (
        load("casebook.v1.common_pb2"),
        load("casebook.v1.decision_pb2"),
        load("casebook.v1.decision_pb2_grpc"),
    )


class Base(DeclarativeBase):
    pass


class BaselineDecision(Base):
    """One row per decision; what is nested is JSON. The indexes are those that such a table commonly has."""

    __tablename__ = "baseline_decision"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    uid: Mapped[str] = mapped_column(Text, unique=True)
    etag: Mapped[str] = mapped_column(Text)
    version: Mapped[int] = mapped_column(Integer, default=1)
    input_data: Mapped[dict] = mapped_column(JSONB)
    case_hash: Mapped[bytes] = mapped_column(LargeBinary, index=True)
    final_verdict: Mapped[str] = mapped_column(Text, index=True)
    reason: Mapped[str] = mapped_column(Text)
    avg_confidence: Mapped[float | None] = mapped_column(Float)
    ambiguity: Mapped[float | None] = mapped_column(Float)
    verdict_scores: Mapped[dict] = mapped_column(JSONB)
    critic_outputs: Mapped[list] = mapped_column(JSONB)
    policy_rules: Mapped[list] = mapped_column(JSONB)
    state: Mapped[int] = mapped_column(Integer, default=1)
    model_version: Mapped[str] = mapped_column(Text)
    trace_id: Mapped[str] = mapped_column(Text)
    decide_time: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)
    processing_time: Mapped[timedelta | None] = mapped_column(Interval)
    decision_metadata: Mapped[dict] = mapped_column("metadata", JSONB)
    labels: Mapped[dict] = mapped_column(JSONB)
    retention_class: Mapped[str] = mapped_column(Text)
    subject_id: Mapped[str] = mapped_column(Text, index=True)
    create_time: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


def as_json(message):
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def utc(timestamp):
    return timestamp.ToDatetime(tzinfo=timezone.utc)


def make_servicer(common, messages, services, sessions):
    class Decisions(services.DecisionServiceServicer):
        def CreateDecision(self, request, context):
            decision = request.decision
            if not decision.final_verdict:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "decision.final_verdict is required")
            input_data = as_json(decision.input_data)
            canonical = json.dumps(input_data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            uid = str(uuid.uuid4())
            has = decision.HasField
            row = BaselineDecision(
                id=request.decision_id or uid,
                uid=uid,
                etag=base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="),
                version=1,
                input_data=input_data,
                case_hash=hashlib.sha256(canonical.encode()).digest(),
                final_verdict=decision.final_verdict,
                reason=decision.reason,
                avg_confidence=decision.avg_confidence if has("avg_confidence") else None,
                ambiguity=decision.ambiguity if has("ambiguity") else None,
                verdict_scores=dict(decision.verdict_scores),
                critic_outputs=[as_json(output) for output in decision.critic_outputs],
                policy_rules=[as_json(rule) for rule in decision.policy_rules],
                state=messages.DECISION_STATE_FINAL,
                model_version=decision.model_version,
                trace_id=decision.trace_id,
                decide_time=utc(decision.decide_time) if has("decide_time") else datetime.now(timezone.utc),
                processing_time=decision.processing_time.ToTimedelta() if has("processing_time") else None,
                decision_metadata=as_json(decision.metadata),
                labels=dict(decision.labels),
                retention_class=decision.retention_class,
                subject_id=decision.subject_id,
            )
            with answering(context), sessions() as session:
                session.add(row)
                try:
                    session.commit()
                except IntegrityError:
                    session.rollback()
                    context.abort(grpc.StatusCode.ALREADY_EXISTS, f'decision "{request.decision_id}" already exists')
                # As ORM code does: the commit expired the row, so reading it back selects it again.
                return messages.CreateDecisionResponse(decision=to_message(row))

        def GetDecision(self, request, context):
            with answering(context), sessions() as session:
                row = session.get(BaselineDecision, request.decision_id)
                if row is None:
                    context.abort(grpc.StatusCode.NOT_FOUND, f'decision "{request.decision_id}" not found')
                return messages.GetDecisionResponse(decision=to_message(row))

    class answering:
        """Turns what the database refuses into a status; abort() raises a plain Exception, which passes."""

        def __init__(self, context):
            self.context = context

        def __enter__(self):
            return self

        def __exit__(self, kind, error, trace):
            if isinstance(error, PoolTimeout):
                self.context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no connection became free in time")
            if isinstance(error, OperationalError):
                self.context.abort(grpc.StatusCode.UNAVAILABLE, "the database cannot be reached")
            return False

    def to_message(row):
        """Without critic outputs, which Casebook does not give on a read either."""
        decision = messages.Decision(
            id=row.id,
            etag=row.etag,
            meta=common.Meta(uid=row.uid, version=row.version),
            final_verdict=row.final_verdict,
            reason=row.reason,
            verdict_scores=row.verdict_scores,
            state=row.state,
            model_version=row.model_version,
            trace_id=row.trace_id,
            labels=row.labels,
            retention_class=row.retention_class,
            subject_id=row.subject_id,
            case_hash=row.case_hash.hex(),
        )
        decision.meta.create_time.FromDatetime(row.create_time)
        decision.meta.update_time.FromDatetime(row.create_time)
        decision.input_data.update(row.input_data)
        decision.metadata.update(row.decision_metadata)
        decision.decide_time.FromDatetime(row.decide_time)
        if row.avg_confidence is not None:
            decision.avg_confidence = row.avg_confidence
        if row.ambiguity is not None:
            decision.ambiguity = row.ambiguity
        if row.processing_time is not None:
            decision.processing_time.FromTimedelta(row.processing_time)
        for rule in row.policy_rules:
            json_format.ParseDict(rule, decision.policy_rules.add())
        return decision

    return Decisions()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database-url", required=True, help="postgresql://user@host/db")
    parser.add_argument("--listen", default="127.0.0.1:0", help="port 0 takes a free one (default: %(default)s)")
    arguments = parser.parse_args()

    url = arguments.database_url
    for scheme in ("postgres://", "postgresql://"):
        if url.startswith(scheme):
            url = "postgresql+psycopg2://" + url.removeprefix(scheme)
    engine = create_engine(url, pool_size=POOL_SIZE, max_overflow=POOL_OVERFLOW)
    try:
        Base.metadata.create_all(engine)
    except OperationalError as error:
        sys.exit(f"the database cannot be reached: {error.orig}")

    with tempfile.TemporaryDirectory(prefix="baseline-proto-") as into:
        common, messages, services = generate(into)
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=THREADS))
        servicer = make_servicer(common, messages, services, sessionmaker(engine))
        services.add_DecisionServiceServicer_to_server(servicer, server)
        try:
            port = server.add_insecure_port(arguments.listen)
        except RuntimeError as error:
            sys.exit(f"cannot listen on {arguments.listen}: {error}")
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        server.start()
        # A bench reads this line to know that it can begin, and where.
        print(f"listening on {arguments.listen.rpartition(':')[0]}:{port}", flush=True)
        stop.wait()
        server.stop(grace=2).wait()
    engine.dispose()


if __name__ == "__main__":
    main()
