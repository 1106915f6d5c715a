"""Writes chunks with SQLAlchemy's bulk_save_objects, as loaders commonly do, and says after each commit how many.

The table is what such a project has: no tenants, no log, no full text search, an index for the document and one for the
time.
"""

import argparse
import random
import sys
import uuid
from datetime import datetime, timezone

from sqlalchemy import DateTime, ForeignKey, Integer, Text, create_engine
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

TEXTS = 1000
DOCUMENT_CHUNKS = 10_000


class Base(DeclarativeBase):
    pass


def now():
    return datetime.now(timezone.utc)


class Document(Base):
    __tablename__ = "baseline_document"

    document_id: Mapped[uuid.UUID] = mapped_column(UUID(as_uuid=True), primary_key=True, default=uuid.uuid4)
    filename: Mapped[str] = mapped_column(Text)


class Chunk(Base):
    __tablename__ = "baseline_chunk"

    chunk_id: Mapped[uuid.UUID] = mapped_column(UUID(as_uuid=True), primary_key=True, default=uuid.uuid4)
    document_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("baseline_document.document_id", ondelete="CASCADE"), index=True
    )
    chunk_index: Mapped[int] = mapped_column(Integer)
    text: Mapped[str] = mapped_column(Text)
    # "metadata" is SQLAlchemy's own name.
    chunk_metadata: Mapped[dict] = mapped_column("metadata", JSONB, default=dict)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now, index=True)
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now, onupdate=now)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--rows", type=int, required=True)
    arguments = parser.parse_args()
    # Chunks that Casebook recorded: the same texts.
    engine = create_engine(arguments.database_url.replace("postgresql://", "postgresql+psycopg2://", 1))
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        select = "SELECT text, metadata FROM casebook.chunk WHERE document_id = 'copied'"
        given = [tuple(row) for row in connection.exec_driver_sql(select)]
    assert len(given) == TEXTS, f"{len(given)} chunks"
    with Session(engine) as session:
        next_index = DOCUMENT_CHUNKS
        while True:
            if next_index >= DOCUMENT_CHUNKS:
                document = Document(filename="report.pdf")
                session.add(document)
                session.commit()
                document_id, next_index = document.document_id, 0
            chunks = []
            for n in range(arguments.rows):
                text, metadata = random.choice(given)
                chunks.append(
                    Chunk(
                        document_id=document_id,
                        chunk_index=next_index + n,
                        text=text,
                        chunk_metadata=metadata,
                    )
                )
            session.bulk_save_objects(chunks)
            session.commit()
            next_index += arguments.rows
            print(arguments.rows, flush=True)


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(0)
