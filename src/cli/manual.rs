//! The prose of `--help`: what a command does, and examples that can be pasted.

pub(super) const ABOUT: &str = "\
Casebook is the system of record for decisions that machines make about people: one gRPC server \
over PostgreSQL. Every write is durable, audited and repeatable; every tenant sees only its own.

`casebook serve` needs nothing else to start with: without a database it runs its own PostgreSQL.";

pub(super) const ROOT: &str = "\
EXAMPLES
  casebook serve                 Start on 127.0.0.1:50051, with a PostgreSQL of its own
  casebook demo                  Fill it with made-up records and query them
  casebook health                Ask whether it is ready
  casebook serve --help          The manual of the server
  casebook config list           Every setting, with its names, default and consequence

EXIT CODES
  0  Done
  1  A check said no, or something went wrong
  2  The command line or the configuration is wrong
  3  The server or PostgreSQL cannot be reached";

pub(super) const SERVE: &str = "\
Run the server until it is told to stop.

DATABASE. Without --database-url, Casebook starts its own PostgreSQL with pgvector, keeps its data in \
./casebook-data, brings the schema up to date, and stops it when it stops. With --database-url it uses \
that database, and refuses to serve a schema that `casebook migrate up` has not brought up to date. \
This build has no TLS to PostgreSQL: a URL that asks for it is refused.

BLOBS. Beside its own PostgreSQL, Casebook keeps the bytes of blobs in ./casebook-data/blobs. With --database-url, \
--blob-store-url says where they are: s3://bucket/prefix, file:///folder, or memory: for trying out. Without it, blobs \
are refused and everything else is served; so it is while the store does not answer. With --blob-key-file new blobs \
are encrypted; see `casebook help key`.

ACCESS. With its own PostgreSQL and on a local address, Casebook asks nobody for a token. Otherwise \
callers present one that `casebook token create` made, as `authorization: Bearer <token>`, and it \
decides their tenant. Serving other machines without tokens is refused.

PORTS. gRPC, health and reflection on 127.0.0.1:50051. Over plain HTTP on 127.0.0.1:9464: /metrics for \
Prometheus, /livez for whether the process lives, /readyz for whether it can serve.

SIGNALS. SIGTERM and Ctrl-C drain: health says NOT_SERVING, calls go on for --drain-delay-ms, no new \
ones are taken, and those under way get --drain-timeout-ms to finish. A second signal stops at once.

SETTINGS. Each has one name: the flag --pool-max-size is the variable CASEBOOK_POOL_MAX_SIZE and the key \
pool_max_size of the file. A flag wins over a variable, which wins over the file. An unknown key or \
CASEBOOK_ variable is an error. Secrets are better given as file:/path or env:NAME than as flags, \
which other users of the machine can see.";

pub(super) const SERVE_EXAMPLES: &str = "\
EXAMPLES
  casebook serve
      Try it: a PostgreSQL of its own, no tokens, this machine only

  CASEBOOK_DATABASE_URL=file:/run/secrets/db casebook serve --listen 0.0.0.0:50051
      Serve other machines from an existing database; callers need tokens

  casebook serve --listen unix:/run/casebook.sock --metrics-listen ''
      Serve programs of this machine through a socket, without metrics

  casebook serve --config /etc/casebook.toml --log-filter info,casebook=debug
      Settings from a file, one of them overridden";

pub(super) const MIGRATE: &str = "\
Bring the database schema up to date, or back.

Migrations run as owner_database_url if that is set, one at a time under a lock, each in a transaction, \
so that several replicas may start at once. Without a database they run on the embedded one.";

pub(super) const MIGRATE_EXAMPLES: &str = "\
EXAMPLES
  casebook migrate status        Which version the schema has; exits with 1 if it is behind
  casebook migrate plan          The SQL that `up` would run
  casebook migrate up            Bring the schema up to date
  casebook migrate down 2        Undo the latest two migrations";

pub(super) const TOKEN: &str = "\
Create, list and revoke API tokens.

They are written to the database directly, so that the first token needs no token. A secret is shown \
once, when it is created; the database holds only its hash. A revoked token may still work for as long \
as credential_cache_ms says.";

pub(super) const TOKEN_EXAMPLES: &str = "\
EXAMPLES
  casebook token create --tenant acme --role writer --name pipeline --expires-in 90d
  casebook token create --tenant acme --role reader,auditor
  casebook token list --tenant acme
  casebook token revoke --tenant acme 4f1c2a9b";

pub(super) const TENANT: &str = "\
Create and list tenants.

A tenant is a hard wall: ids, searches, audit logs and limits of one never meet those of another. They \
are written to the database directly.";

pub(super) const TENANT_EXAMPLES: &str = "\
EXAMPLES
  casebook tenant create acme
  casebook tenant list";

pub(super) const AUDIT: &str = "\
Archive the audit log of a running server.

`archive` writes the oldest entries to files in the server's audit_archive_dir, 10,000 to a file, and then \
erases who, from where and earlier versions from the database. Numbers and hashes stay, so the files can be \
checked for ever. It needs a token with the role admin; the server keeps what is younger than its \
audit_keep_min_days. Each file is printed with its SHA-256: keep that elsewhere.";

pub(super) const AUDIT_EXAMPLES: &str = "\
EXAMPLES
  casebook audit archive --older-than 365d
  casebook audit archive --older-than 365d --tenant acme --token file:/run/secrets/token";

pub(super) const EXPORT: &str = "\
Write the records of a tenant to a file, through a running server.

`jsonl` writes one JSON object per line: a header, then {\"kind\": \"decision\", \"resource\": {...}} with the \
resource in the JSON form of the protocol, and last a trailer with the number of lines of each kind and a \
SHA-256 of all before it, so that a file that was cut off is noticed. All lines show the tenant at one \
revision, whatever is written meanwhile. A kind that the server does not serve is noted and left out.

NOT IN IT. What is deleted, earlier versions, the audit log, tenants, tokens and service health. It is a \
copy of the records as they stand, and no backup: for that, back up PostgreSQL.

With --output the file is FILE.unfinished until it is whole.";

pub(super) const EXPORT_EXAMPLES: &str = "\
EXAMPLES
  casebook export jsonl --output acme.jsonl --tenant acme
  casebook export jsonl --kind decision,critic_output,override
  casebook export jsonl --token file:/run/secrets/token";

pub(super) const IMPORT: &str = "\
Write the records of a file to a tenant, through a running server. What is referred to comes first: \
documents before analyses, claims before verifications, decisions before overrides.

AGAIN. Every call has a request id that comes from the file and its lines, and a state file beside the input \
says how far it is. After an interruption, run the same command: it goes on, and writes nothing twice. \
When it is done, the state file goes.

REFUSED. A line that is refused keeps no other line out. It is shown, and listed in FILE.refused.jsonl with \
line, kind, id, reason and message; corrected, that list can be imported itself with --unsealed. Exits \
with 1 if any line is refused. A file that is not whole is refused before anything is written.

ID TAKEN. --on-conflict fail refuses the line. skip leaves what is there: equal content counts as unchanged, \
other content as kept. replace writes a new version; kinds that never change (decisions, critic outputs, \
overrides, bundles of evidence, verifications, analyses, precedent references, checkpoints, training examples, \
snapshots, holds, policies) are unchanged if equal, and refused if not.

NOT RESTORED. What the server owns: uid, etag, version, create_time, update_time and who did it; total_chunks \
of documents; current, supersedes_id and superseded_by_id of consensuses, which come again from their \
order; the state of decisions, which comes again from their overrides; used_in_training of training \
examples, which are all unused again. Checkpoints that were active are activated, and holds that were \
released are released, by the importer and now. Creating needs the role writer; holds and policies may need more.

SQLITE. `sqlite` reads the database of Collections: items become documents, with their times as \
imported_create_time and imported_update_time in metadata, and analyses become analyses, numbered from 1 in \
the order of their versions; versions and times as they were are in imported_analyses of the document's \
metadata. Embeddings are not imported yet. What is left out or changed is listed in \
FILE.jsonl.left-out.jsonl, and FILE.jsonl is what is sent.";

pub(super) const IMPORT_EXAMPLES: &str = "\
EXAMPLES
  casebook import jsonl acme.jsonl --tenant acme
  casebook import jsonl acme.jsonl --on-conflict skip
  casebook import jsonl acme.jsonl.refused.jsonl --unsealed
  casebook import sqlite data/collections.db --tenant acme";

pub(super) const DEMO: &str = "\
Write made-up decisions to a running server, read them back, and report how fast both went. They stay \
there: use a tenant that you can spare.";

pub(super) const DEMO_EXAMPLES: &str = "\
EXAMPLES
  casebook demo
  casebook demo --count 20000 --concurrency 256
  casebook demo --address http://10.0.0.7:50051 --token file:/run/secrets/token";

pub(super) const HEALTH: &str = "\
Ask a running server whether it is ready, by the standard gRPC health protocol. Fit for an exec probe: it \
exits with 0 if the answer is SERVING, 1 if it is anything else, and 3 if nobody answers.";

pub(super) const HEALTH_EXAMPLES: &str = "\
EXAMPLES
  casebook health
  casebook health --address unix:/run/casebook.sock
  casebook health --service casebook.v1.DecisionService";

pub(super) const KEY: &str = "\
Make keys that encrypt blobs. With --blob-key-file (or --blob-key) each new blob is encrypted under a key of \
its own, which stands beside its record, wrapped by yours. Keep yours apart from database and backups: \
with both, blobs can be read; without yours, never again.

THE FILE has a line for each key: an id, a colon, the key. The first wraps, all unwrap; # begins a comment. \
Only its owner, and a group that reads, may have access to it.

ANOTHER KEY. Add a new line at the end and restart every server; then move it to the top and restart them \
again. New blobs are wrapped by it. `casebook key rotate` has it wrap those that are there, too: their bytes stay as \
they are, servers go on, and what is interrupted goes on where it was when it is run again. Once it says that all are \
under the first key, the old line may go; keep it with backups of the database from before.";

pub(super) const KEY_EXAMPLES: &str = "\
EXAMPLES
  (umask 077; casebook key generate >> /etc/casebook/blob-keys)
  casebook serve --blob-key-file /etc/casebook/blob-keys
  CASEBOOK_BLOB_KEY=file:/run/secrets/blob-keys casebook serve
  casebook key rotate --database-url postgres://casebook_owner@db/casebook --blob-key-file /etc/casebook/blob-keys";

pub(super) const CONFIG: &str = "\
Show the configuration. `print` reads file, environment and flags as `serve` would, and exits with 2 if \
`serve` would refuse them.";

pub(super) const CONFIG_EXAMPLES: &str = "\
EXAMPLES
  casebook config print                      Every value, and where it came from
  casebook config print --redacted           The same, fit for a ticket
  casebook config print --pool-max-size 50   What would be in force with that flag
  casebook config list                       Every setting, with its names, default and consequence";
