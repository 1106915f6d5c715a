-- The extension stays (other people's columns may use it) and so does the role, which belongs to the whole cluster.
DROP SCHEMA wall CASCADE;
DROP TABLE casebook.deployment_secret, casebook.request_ledger, casebook.log, casebook.audit_archive, casebook.log_head, casebook.noun;
DROP PROCEDURE casebook.build_wall(regclass, text);
DROP FUNCTION casebook.search_vector(text, text, text, text);
