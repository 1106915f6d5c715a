//! ExportAudit: the log as a stream, whole or seen not to be.
