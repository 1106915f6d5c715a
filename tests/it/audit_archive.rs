//! ArchiveAuditEntries: detail goes to a file, hashes stay.
