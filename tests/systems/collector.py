"""A collector: people upload items, a model describes each, and they find their own again by words.

Usage, on an empty database:

    CASEBOOK_ADDRESS=127.0.0.1:50051 PYTHONPATH=.tools/python python3 tests/systems/collector.py
"""

# First, because it says what to do where grpcio is missing.
from client import connect, expect, refused, step

import grpc

from casebook.v1 import (
    analysis_pb2,
    common_pb2,
    document_pb2,
    document_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
)

channel = connect()
documents = document_pb2_grpc.DocumentServiceStub(channel)
search = search_pb2_grpc.SearchServiceStub(channel)


def owned_by(user):
    """Selects what belongs to a user."""
    owner = common_pb2.FieldCondition(path="owner_id", equals=common_pb2.Value(string_value=user))
    return common_pb2.Selector(filter=common_pb2.Filter(field=owner))


step("a user uploads an item")
documents.CreateDocument(
    document_pb2.CreateDocumentRequest(
        document_id="item-123",
        document=document_pb2.Document(
            filename="a1b2c3.jpg",
            original_filename="harbour.jpg",
            source_path="/uploads/user-456/a1b2c3.jpg",
            size_bytes=245760,
            mime_type="image/jpeg",
            owner_id="user-456",
        ),
    )
)

step("another user uploads one, too")
documents.CreateDocument(
    document_pb2.CreateDocumentRequest(
        document_id="item-999",
        document=document_pb2.Document(
            filename="d4e5f6.jpg",
            source_path="/uploads/user-789/d4e5f6.jpg",
            owner_id="user-789",
        ),
    )
)

step("read the item")
get_item = document_pb2.GetDocumentRequest(document_id="item-123")
item = documents.GetDocument(get_item).document
expect(item.filename, "a1b2c3.jpg", "the file name")
expect(item.original_filename, "harbour.jpg", "the original file name")
expect(item.source_path, "/uploads/user-456/a1b2c3.jpg", "the path")
expect(item.size_bytes, 245760, "the size")
expect(item.mime_type, "image/jpeg", "the type")
expect(item.owner_id, "user-456", "the owner")

step("among one's own items, another user's are not found")
own = documents.ListDocuments(document_pb2.ListDocumentsRequest(where=owned_by("user-456")))
expect([document.id for document in own.documents], ["item-123"], "the user's items")
theirs = documents.ListDocuments(
    document_pb2.ListDocumentsRequest(
        where=common_pb2.Selector(expression='owner_id = "user-456" AND id = "item-999"')
    )
)
expect(len(theirs.documents), 0, "the number of another user's items found")

step("a model describes the item")
# As the model answered. The fields of the analysis that people filter and search by are taken out of it.
response = {
    "category": "travel",
    "summary": "Fishing boats in a harbour at sunrise",
    "tags": ["boats", "sea"],
    "details": {"weather": "misty"},
}
analysis = documents.CreateAnalysis(
    analysis_pb2.CreateAnalysisRequest(
        analysis_id="analysis-789",
        analysis=analysis_pb2.Analysis(
            document_id="item-123",
            category=response["category"],
            summary=response["summary"],
            tags=response["tags"],
            raw_response=response,
            provider_used="example",
            model_used="vision-1",
            owner_id="user-456",
        ),
    )
).analysis
expect(analysis.analysis_version, 1, "the number of the first analysis")

step("a second analysis gets the number 2, and is the latest")
analysis = documents.CreateAnalysis(
    analysis_pb2.CreateAnalysisRequest(
        analysis_id="analysis-790",
        analysis=analysis_pb2.Analysis(
            document_id="item-123",
            category="landscape",
            summary="A quiet bay with cliffs",
            tags=["coast"],
            owner_id="user-456",
        ),
    )
).analysis
expect(analysis.analysis_version, 2, "the number of the second analysis")
get_latest = analysis_pb2.GetLatestAnalysisRequest(document_id="item-123")
expect(documents.GetLatestAnalysis(get_latest).analysis.id, "analysis-790", "the latest analysis")
get_first = analysis_pb2.GetAnalysisRequest(analysis_id="analysis-789")
first = documents.GetAnalysis(get_first).analysis
expect((first.category, list(first.tags)), ("travel", ["boats", "sea"]), "the first analysis")
expect(first.raw_response["details"]["weather"], "misty", "the model's answer")


def find(text, **more):
    """Searches analyses for words."""
    request = search_pb2.SearchRequest(text=text, kinds=[common_pb2.RESOURCE_KIND_ANALYSIS], **more)
    return search.Search(request).hits


step("search for words of the summary, among one's own; hits have a rank, and passages with the words marked")
hits = find("boat harbour", where=owned_by("user-456"), page=common_pb2.PageRequest(page_size=10), highlight=True)
expect([hit.ref.id for hit in hits], ["analysis-789"], "the hits")
expect(0 < hits[0].score <= 1, True, "whether the score is above 0 and at most 1")
passages = " ".join(hits[0].highlights)
expect("**boats**" in passages and "**harbour**" in passages, True, f"whether both words are marked in {passages!r}")

step("words that only the model's raw answer has are found, too")
expect([hit.ref.id for hit in find("misty")], ["analysis-789"], "the hits")

step("another user finds nothing")
expect(len(find("boat harbour", where=owned_by("user-789"))), 0, "the number of hits")

step("deleting the item hides its analyses")
documents.DeleteDocument(document_pb2.DeleteDocumentRequest(document_id="item-123"))
refused(grpc.StatusCode.NOT_FOUND, documents.GetDocument, get_item)
refused(grpc.StatusCode.NOT_FOUND, documents.GetAnalysis, get_first)
refused(grpc.StatusCode.NOT_FOUND, documents.GetLatestAnalysis, get_latest)
expect(len(find("harbour")), 0, "the number of hits")

step("undeleting brings all of it back")
documents.UndeleteDocument(document_pb2.UndeleteDocumentRequest(document_id="item-123"))
listed = documents.ListAnalyses(analysis_pb2.ListAnalysesRequest(document_id="item-123"))
expect(sorted(one.id for one in listed.analyses), ["analysis-789", "analysis-790"], "the analyses")
expect([hit.ref.id for hit in find("harbour")], ["analysis-789"], "the hits")
