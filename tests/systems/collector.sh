#!/bin/sh
# A collector: people upload items, a model describes each, and they find their own again by words.
# Usage: CASEBOOK_ADDRESS=127.0.0.1:50051 tests/systems/collector.sh     (on an empty database)
set -eu
. "$(dirname "$0")/client.sh"

step "a user uploads an item"
call DocumentService/CreateDocument '{
  "document_id": "item-123",
  "document": {
    "filename": "a1b2c3.jpg",
    "original_filename": "harbour.jpg",
    "source_path": "/uploads/user-456/a1b2c3.jpg",
    "size_bytes": 245760,
    "mime_type": "image/jpeg",
    "owner_id": "user-456"
  }
}'
has '"id": "item-123"'

step "another user uploads one, too"
call DocumentService/CreateDocument '{
  "document_id": "item-999",
  "document": {"filename": "d4e5f6.jpg", "source_path": "/uploads/user-789/d4e5f6.jpg", "owner_id": "user-789"}
}'

step "read the item"
call DocumentService/GetDocument '{"document_id": "item-123"}'
has '"filename": "a1b2c3.jpg"'
has '"originalFilename": "harbour.jpg"'
has '"sourcePath": "/uploads/user-456/a1b2c3.jpg"'
has '"sizeBytes": "245760"'
has '"mimeType": "image/jpeg"'
has '"ownerId": "user-456"'

step "among one's own items, another user's are not found"
call DocumentService/ListDocuments '{"where": {"expression": "owner_id = \"user-456\""}}'
has '"id": "item-123"'
lacks '"id": "item-999"'
call DocumentService/ListDocuments '{"where": {"expression": "owner_id = \"user-456\" AND id = \"item-999\""}}'
lacks '"id": "item-999"'

step "a model describes the item"
call DocumentService/CreateAnalysis '{
  "analysis_id": "analysis-789",
  "analysis": {
    "document_id": "item-123",
    "category": "travel",
    "summary": "Fishing boats in a harbour at sunrise",
    "tags": ["boats", "sea"],
    "raw_response": {
      "category": "travel",
      "summary": "Fishing boats in a harbour at sunrise",
      "tags": ["boats", "sea"],
      "details": {"weather": "misty"}
    },
    "provider_used": "example",
    "model_used": "vision-1",
    "owner_id": "user-456"
  }
}'
has '"id": "analysis-789"'
has '"analysisVersion": 1'

step "a second analysis gets the number 2, and is the latest"
call DocumentService/CreateAnalysis '{
  "analysis_id": "analysis-790",
  "analysis": {
    "document_id": "item-123",
    "category": "landscape",
    "summary": "A quiet bay with cliffs",
    "tags": ["coast"],
    "owner_id": "user-456"
  }
}'
has '"analysisVersion": 2'
call DocumentService/GetLatestAnalysis '{"document_id": "item-123"}'
has '"id": "analysis-790"'
call DocumentService/GetAnalysis '{"analysis_id": "analysis-789"}'
has '"weather": "misty"'
has '"category": "travel"'

step "search for words of the summary, among one's own; hits have a rank, and passages with the words marked"
call SearchService/Search '{
  "text": "boat harbour",
  "kinds": ["RESOURCE_KIND_ANALYSIS"],
  "where": {"expression": "owner_id = \"user-456\""},
  "page": {"page_size": 10},
  "highlight": true
}'
has '"id": "analysis-789"'
lacks '"id": "analysis-790"'
has '"score":'
has '**boats**'
has '**harbour**'

step "words that only the model's raw answer has are found, too"
call SearchService/Search '{"text": "misty", "kinds": ["RESOURCE_KIND_ANALYSIS"]}'
has '"id": "analysis-789"'

step "another user finds nothing"
call SearchService/Search '{
  "text": "boat harbour",
  "kinds": ["RESOURCE_KIND_ANALYSIS"],
  "where": {"expression": "owner_id = \"user-789\""}
}'
lacks '"id": "analysis-789"'

step "deleting the item hides its analyses"
call DocumentService/DeleteDocument '{"document_id": "item-123"}'
refused NotFound DocumentService/GetDocument '{"document_id": "item-123"}'
refused NotFound DocumentService/GetAnalysis '{"analysis_id": "analysis-789"}'
refused NotFound DocumentService/GetLatestAnalysis '{"document_id": "item-123"}'
call SearchService/Search '{"text": "harbour"}'
lacks '"id": "analysis-789"'

step "undeleting brings all of it back"
call DocumentService/UndeleteDocument '{"document_id": "item-123"}'
call DocumentService/ListAnalyses '{"document_id": "item-123"}'
has '"id": "analysis-789"'
has '"id": "analysis-790"'
call SearchService/Search '{"text": "harbour"}'
has '"id": "analysis-789"'
